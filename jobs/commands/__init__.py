"""The verbs of the `herd` command, one idea a file. Each parses, calls one function, prints."""
