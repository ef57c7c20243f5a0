"""Prior models by name: one file for each kind, and those of `catalogue.py`; `base.py` has the contract."""

from priors.base import Prior, find_prior, priors

__all__ = ["Prior", "find_prior", "priors"]
