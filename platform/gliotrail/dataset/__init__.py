"""What a data set says it is: channels, classes and nested regions."""
