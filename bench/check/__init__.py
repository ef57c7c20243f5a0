"""The gate: a small grid, run anew and compared with stored values."""
