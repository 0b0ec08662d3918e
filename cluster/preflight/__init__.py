"""Checks before a run, on every node: what a node says of itself (`probe`), what that means (`findings`), how nodes are
asked (`nodes`), and what a job needs (`job`)."""
