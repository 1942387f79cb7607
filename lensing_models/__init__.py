"""The shared training core: tasks, networks, data and checkpoints for strong-lens images."""

__version__ = "0.1.0"
