"""One short script per DVC stage: `python -m pipelines.STAGE`."""
