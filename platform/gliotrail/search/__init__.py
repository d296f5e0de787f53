"""A sweep without Ray: space, proposals, early stopping, outcome."""
