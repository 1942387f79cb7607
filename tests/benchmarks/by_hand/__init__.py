"""What a user would write for each runtime with its own Python API; `tests.benchmarks.fidelity_by_hand` runs it.

Each is a program: CHECKPOINT IMAGES.npy BATCH THREADS. For each line on its standard input, a number of calls, it
makes that many and prints their median time [s].
"""
