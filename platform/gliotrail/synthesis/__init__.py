"""Synthetic tumours in real anatomy."""
