"""Executors: ways to run the cells of a grid, one file each. `run --executor NAME` chooses one."""

from dataclasses import fields

from bench.core.errors import UserError
from bench.core.registry import Registry
from bench.run.executors.base import Executor, Resources, Work

executors: Registry[type[Executor]] = Registry(
    "executor", "bench.run.executors", group="rela_bench.executors", contract=Executor
)


def find_executor(name: str, device: str, resources: Resources) -> Executor:
    """Return an executor by its name. Raises UserError on an unknown one, and on options that are not for it."""
    kind = executors.get(name)
    for option in fields(resources):
        if getattr(resources, option.name) is not None and option.name not in kind.takes:
            raise UserError(f"--{option.name.replace('_', '-')} is not an option of --executor {name}")
    return kind(device, resources)


__all__ = ["Executor", "Resources", "Work", "executors", "find_executor"]
