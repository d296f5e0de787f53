"""A data set's own description: channels, classes and nested regions."""
