"""What the figures of a report show, and how matplotlib draws them."""
