"""A report as text, LaTeX, CSV, JSON, or a page."""
