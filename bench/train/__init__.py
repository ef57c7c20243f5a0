"""One cell: its training, its checkpoint, and its record."""
