"""PostgreSQL, an S3 server, MLflow's server and a Ray head on this machine."""
