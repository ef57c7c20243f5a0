"""What a cell spends, and what else the machine did meanwhile."""
