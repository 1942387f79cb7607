"""Images with known truth: the simulator of strong lenses, and the store that keeps them."""
