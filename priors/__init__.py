"""Prior models, by name; `base.py` has the contract, `kinds.py` the kinds, `targets.py` what they make."""

from priors.base import Prior, find_prior, priors

__all__ = ["Prior", "find_prior", "priors"]
