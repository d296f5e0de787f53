"""A training's files on this disk: journal, owner, stop notes. No MLflow, Ray or torch."""
