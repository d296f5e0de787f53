"""What a run leaves on this disk: journal, owner, what MLflow lacks. No MLflow, Ray, torch."""
