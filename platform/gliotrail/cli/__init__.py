"""The command line: `gliotrail COMMAND`."""
