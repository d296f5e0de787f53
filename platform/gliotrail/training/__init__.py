"""What a training is, and the one driver that runs it anywhere."""
