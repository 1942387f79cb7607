"""The harness: measure what a network costs and what it is worth, through every runtime."""
