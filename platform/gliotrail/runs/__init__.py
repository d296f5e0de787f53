"""What a training leaves on this disk: journal, owner, stop notes. No MLflow, Ray or torch."""
