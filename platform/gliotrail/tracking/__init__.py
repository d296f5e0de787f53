"""What is remembered: runs, journal, lineage, registry. The only room that imports mlflow."""
