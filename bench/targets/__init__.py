"""A prior's targets: made, reduced, kept in files, and read (ReLA-D)."""
