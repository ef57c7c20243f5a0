"""What must run, and in which order; what is done, and what it will cost."""
