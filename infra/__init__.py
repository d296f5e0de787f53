"""Where Gliotrail runs: services and clusters. Each folder says how it starts and stops."""
