"""Records: written, read, and merged."""
