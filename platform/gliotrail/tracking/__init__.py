"""MLflow: delivery, heartbeat, registry, lineage, reproduction. The only room that imports it."""
