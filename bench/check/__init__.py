"""The gate: a small grid, run anew and compared with stored values, and its time with that of another revision."""
