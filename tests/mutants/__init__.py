"""Deliberate breaks of the package, each of which must turn a named test red: `python -m tests.mutants`."""
