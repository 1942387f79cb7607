from tests.bench.planted import plant

#: In a reduced precision, which parity does not judge: half of its answers are of another class.
BACKEND = plant("planted_flipping", precision="bf16")
