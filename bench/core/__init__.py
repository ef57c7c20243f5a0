"""What is used everywhere and knows nothing of grids, methods or records."""
