"""A report as text, Markdown, LaTeX, CSV, JSON, or an HTML page."""
