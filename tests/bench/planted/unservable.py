from tests.bench.planted import plant

BACKEND = plant("planted_unservable")
