"""Where it runs: training, sweeps, clusters. The only room that imports ray."""
