"""Methods made small, for tests that build all of them."""

from typing import Any

from methods import methods


def backbone_for(name: str) -> str:
    """Return the name of a small backbone that the method runs on."""
    return "vit_micro" if methods.get(name).needs_tokens else "resnet_small"


def of_its_own(name: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """Return those of the sizes that are parameters of the method."""
    return {key: sizes[key] for key in methods.resolved(name, {}, "") if key in sizes}
