"""The data path: plan, read, render, generate, parse, write and commit, verify."""

__version__ = "0.1.0"
