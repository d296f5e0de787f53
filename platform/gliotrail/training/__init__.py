"""What a training is (inputs, identity, description), and the one driver that runs it."""
