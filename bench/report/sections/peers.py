"""Our accuracies beside those that another benchmark publishes, and in what its recipe differs from ours."""

from collections.abc import Iterator, Mapping
from typing import Any

from bench.grid.cell import arm_name
from bench.grid.published import COMPARED, Row
from bench.grid.schema import Grid
from bench.report.blocks import Block, Heading, Paragraph, TableBlock
from bench.report.collect import Collected, Result
from bench.report.facts import knn, linear
from bench.report.sections.accuracy import accuracy_entry
from bench.report.tables import Entry, Table, entries

MAXIMUM = "maximum over all epochs on the test set"
SAME = "same recipe"


def section(found: Collected) -> Iterator[Block]:
    """Yield the table, where the grid names a peer."""
    if not (peer := found.grid.peer):
        return
    table = peers_table(found)
    yield Heading(f"Beside what {peer.source} publishes")
    yield Paragraph(
        "Top-1 accuracy in %. Ours: after the last epoch, mean ± sample standard deviation (ddof 1) over n seeds."
        f" Published: as {peer.source} has it; its n and spread are not known. Recipe: the settings of our cells beside"
        " what is known of its own (ours for its). What is neither a setting here nor named is not compared."
    )
    if any(MAXIMUM in row[2].text for row in table.rows):
        yield Paragraph(
            f"A {MAXIMUM} is chosen by the test set, and is no less than the accuracy after the last epoch: it is"
            " another quantity than ours."
        )
    yield TableBlock("peers", table)


def peers_table(found: Collected) -> Table:
    """Return each arm's accuracy at the full budget beside each that is published, and how their recipes compare."""
    head = ("Dataset", "Arm", "Published is", "Recipe", "Ours", "Published")
    rows = []
    for result in found.results:
        peer, name = found.grid.peer, arm_name(result.arm)
        published = peer.rows(result.group.dataset, name) if peer and result.budget == 1.0 else ()
        for row in (row for row in published if "top-1" in row.metric):
            assert peer
            recipe = comparison(our_recipe(found.grid, result, row), peer.behind(row))
            ours = accuracy_entry(result, knn if "kNN" in row.metric else linear)
            stated = row.which_epoch.replace("not stated", "epoch not stated")
            rows.append(entries(result.group.label, name, f"{row.metric}, {stated}", recipe, ours, row.value))
    return Table(head, tuple(rows), names=4)


def our_recipe(grid: Grid, result: Result, row: Row) -> dict[str, Any]:
    """Return what a peer's recipe is compared with: that of the records, before there is one that of the grid."""
    dataset = next(each for each in grid.datasets if each.name == result.group.dataset)
    cell = grid.cell(dataset, grid.protocol_on(dataset, result.arm), result.arm, 1.0, result.seeds[0])
    cell, params = (result.done[0].cell, result.done[0].inputs.params) if result.done else (cell, cell.params)
    settings = {**cell.protocol.model_dump(), "backbone": cell.backbone, "train_images": cell.train_images or "all"}
    recipe = {key: settings[key] for key in COMPARED if (key, cell.protocol.optimiser) != ("momentum", "adamw")}
    metric = f"kNN top-1 (k={cell.protocol.knn.k})" if "kNN" in row.metric else "offline linear top-1"
    return recipe | {"params": params, "metric": metric, "which_epoch": "last epoch"}


def comparison(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Entry:
    """Return "same recipe", or in what two recipes differ and what is not known of theirs, by comparing their keys.

    Of a method's parameters, those that theirs names are compared.
    """
    pairs = {key: (value, theirs.get(key)) for key, value in ours.items() if key != "params"}
    named = {f"params.{key}": (ours["params"].get(key, "default"), value) for key, value in theirs["params"].items()}
    differ = [
        f"{_words(key)} ({_words(mine)} for {_words(other)})"
        for key, (mine, other) in (pairs | named).items()
        if other not in (None, mine)
    ]
    unknown = [_words(key) for key, (_, other) in pairs.items() if other is None]
    unknown += [] if named else ["params"]
    notes = [f"besides, it has {', '.join(theirs['besides'])}"] if theirs["besides"] else []
    notes += [f"not known: {', '.join(unknown)}"] if unknown else []
    equal = "no setting differs" if notes else SAME
    return Entry(f"differs in {', '.join(differ)}" if differ else equal, f"({'; '.join(notes)})" if notes else "")


def _words(value: Any) -> str:
    """Return a key or a value for people."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value).replace("_", " ")
