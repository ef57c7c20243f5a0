"""The two-Gaussian study."""
