"""Methods and accelerators made small, for tests that build all of them."""

from typing import Any

from methods import Accelerator, Method, accelerators, methods

AROUND: dict[str, dict[str, Any]] = {  # of the papers' sizes of accelerators, those that would only cost time here
    "many_patches": {"patches": 3, "hidden": 32, "projection": 16},
    "sas": {"classes": 3},
    "seed": {"queue": 24},
}


def backbone_for(name: str) -> str:
    """Return the name of a small backbone that the method or accelerator runs on."""
    kind: type[Method] = accelerators.get(name) if name in accelerators else methods.get(name)
    return "vit_micro" if kind.needs_tokens else "resnet_small"


def around(name: str, method: Method, target_dim: int = 8) -> Accelerator:
    """Return the accelerator around a method."""
    return accelerators.build(name, method, target_dim, AROUND.get(name, {}))


def accelerate(name: str) -> dict[str, Any]:
    """Return what a grid says of the accelerator, with a random prior where it needs one."""
    prior = {"prior": "rand"} if accelerators.get(name).needs_prior else {}
    return {"name": name, **prior, **AROUND.get(name, {})}


def of_its_own(name: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """Return those of the sizes that are parameters of the method."""
    return {key: sizes[key] for key in methods.resolved(name, {}, "") if key in sizes}
