"""What a user would write for each runtime with its own Python API; `tests.benchmarks.fidelity_by_hand` runs it.

Each is a program: CHECKPOINT IMAGES.npy BATCH THREADS. It writes its answers to the first batch to `answers.npy`; then
for each line on its standard input, a number of calls, it makes that many, after three that do not count, and prints
their median time [s].
"""
