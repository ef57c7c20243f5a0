"""Who runs the cells of a plan."""
