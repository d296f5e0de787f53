"""MLflow: delivery, heartbeat, registry, lineage, reproduce. The only room that imports it."""
