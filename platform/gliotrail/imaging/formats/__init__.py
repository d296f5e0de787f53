"""Layouts of other data sets, one file each."""
