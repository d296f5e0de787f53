"""Ray: connection, workers, trials, jobs, data by hash. The only room that imports it."""
