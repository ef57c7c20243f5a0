"""A frozen backbone judged."""
