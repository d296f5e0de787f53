"""A training's inputs, identity and description, and the one driver that runs it."""
