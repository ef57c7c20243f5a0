"""What others have published, to be shown beside ours: rows of `peers.csv`, and curves read off the paper's figure."""

import csv
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import Field, model_validator

from bench.core.errors import did_you_mean
from bench.grid.base import Model
from bench.grid.cell import Recipe

FOLDER = Path(__file__).parent / "shipped"  # the sources' numbers, to the digit
FIGURE_DATASET = "cifar10"
READ_OFF = "read off a figure, ±0.004"
COMPARED = ("backbone", "train_images", "epochs", "batch_size", *Recipe.model_fields, "precision", "blur")
FURTHER = ("params", "lr_batch", "besides")


class Row(NamedTuple):
    """A published number, as its source has it; "" or "not stated" is what the source does not say."""

    source: str
    commit: str
    dataset: str
    method: str
    backbone: str
    epochs: str
    batch_size: str
    metric: str
    value: str
    which_epoch: str
    unit: str


class Peer(Model):
    """Another benchmark, whose numbers stand beside those of arms and datasets of their names, and its recipe.

    The recipe is what is known of theirs, not what ours does: keys of COMPARED; the method's `params`; `lr_batch`, the
    batch size with which the rate grows, if it does; `besides`, what no key of ours says. What is left out is unknown.
    """

    source: str
    recipe: dict[str, Any] = Field(default_factory=dict)
    recipes: dict[str, dict[str, Any]] = Field(default_factory=dict)  # by method, as the source calls it: over `recipe`

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        sources = {row.source for row in peer_rows()}
        if self.source not in sources:
            raise ValueError(f"source: {self.source!r} has published nothing here{did_you_mean(self.source, sources)}")
        methods, keys = {row.method for row in peer_rows() if row.source == self.source}, (*COMPARED, *FURTHER)
        for method in self.recipes.keys() - methods:
            raise ValueError(f"recipes.{method}: {self.source} has no such method{did_you_mean(method, methods)}")
        for key in set().union(self.recipe, *self.recipes.values()) - {*keys}:
            raise ValueError(f"unknown key {key!r} of a recipe{did_you_mean(key, keys)}")
        return self

    def rows(self, dataset: str, arm: str) -> Iterator[Row]:
        """Yield the source's numbers of a dataset and an arm, whose names differ from its by case and signs at most."""
        for row in peer_rows():
            if row.source == self.source and (_bare(row.dataset), _bare(row.method)) == (_bare(dataset), _bare(arm)):
                yield row

    def behind(self, row: Row) -> dict[str, Any]:
        """Return what is known of the recipe behind a number; what its row says comes first."""
        own = self.recipes.get(row.method, {})
        recipe = self.recipe | own | {"epochs": int(row.epochs)}
        if row.batch_size:
            recipe["batch_size"] = int(row.batch_size)
        if scaled := recipe.pop("lr_batch", None):
            recipe["lr"] = round(recipe["lr"] * recipe["batch_size"] / scaled, 10)
        recipe["besides"] = [each["besides"] for each in (self.recipe, own) if "besides" in each]
        recipe.setdefault("params", {})
        stated = row.which_epoch != "not stated"
        return recipe | {"metric": row.metric, "which_epoch": row.which_epoch if stated else None}


@cache
def peer_rows() -> tuple[Row, ...]:
    """Return the numbers that other benchmarks publish, in their order."""
    return tuple(Row(**row) for row in _table("peers"))


@cache
def figure_curves() -> dict[str, tuple[tuple[int, float], ...]]:
    """Return the curves of the paper's figure on CIFAR-10: by name, the share of test images at each epoch."""
    rows = list(_table("rela_figure_cifar10"))
    return {name: tuple((int(row["epoch"]), float(row[name])) for row in rows) for name in [*rows[0]][1:]}


def _table(name: str) -> Iterator[dict[str, str]]:
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _bare(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()
