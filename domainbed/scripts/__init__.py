"""Command lines: each parses its arguments, calls the package, and prints."""
