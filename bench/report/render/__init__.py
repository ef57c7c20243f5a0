"""A report as Markdown, HTML, LaTeX and text."""
