"""Where a job runs: the Ray cluster, the models it can serve, and the checks made before an engine starts."""
