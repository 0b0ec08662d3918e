"""How a job is started and looked at: job files, the `herd` command, the demo."""
