"""The benchmark suite, and the two settings by which `regression` reaches it in its own process."""

#: Environment variable with the CPU threads of every runtime; 1 where it is not set.
THREADS = "LENSING_BENCH_THREADS"
#: Environment variable with the factor by which sessions are slowed down on purpose.
PLANT = "LENSING_BENCH_PLANT"
