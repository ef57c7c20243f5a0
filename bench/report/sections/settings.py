"""What was trained on each dataset, and how."""

from collections.abc import Iterator

from bench.grid.cell import LABELLED, Arm, arm_name
from bench.grid.schema import Grid
from bench.report.blocks import Block, Bullets
from bench.report.collect import Collected
from bench.report.tables import counted, one_line


def section(found: Collected) -> Iterator[Block]:
    """Yield a line on each dataset."""
    yield Bullets(tuple(map(one_line, settings(found))))


def settings(found: Collected) -> list[str]:
    """Return a line on each dataset, what was trained on it and how, each arm's own recipe, and who saw labels."""
    grid = found.grid
    lines = []
    for dataset in grid.datasets:
        titles = ", ".join(group.label for group in found.groups if group.dataset == dataset.name)
        count = dataset.train_images
        images = f"{count:,} training images" if count else "all training images that were there"
        protocol = grid.protocol_on(dataset)
        compiled = f" compiled ({protocol.compile})," if protocol.compile else ""
        probe = " probe by L-BFGS," if protocol.probe.recipe == "lbfgs" else ""
        lines.append(
            f"{titles}: {images}, backbone {dataset.backbone or grid.backbone}, {protocol.epochs} epochs (each over the"
            f" budget's share of the images), batch {protocol.batch_size}, {protocol.precision},"
            f"{compiled}{probe} {counted(len(grid.seeds), 'seed')} planned."
        )
    recipes: dict[str, list[str]] = {}
    for arm in grid.arms:
        recipes.setdefault(_words(grid, arm), []).append(arm_name(arm))
    lines += [f"{'; '.join(arms)}: {recipe}." for recipe, arms in recipes.items() if recipe]
    if any(arm.method == LABELLED for arm in grid.arms):
        lines.append(f"Method {LABELLED} learns from the labels of the training images, which no other method sees.")
    return lines


def _words(grid: Grid, arm: Arm) -> str:
    """Return the recipe of an arm, as far as it is its own."""
    tune = grid.tune if arm_name(arm) in grid.tuned else None
    chosen = sorted(tune.space) if tune else []
    own = ", ".join(f"{key} {value}" for key, value in grid.recipe(arm).items() if key not in chosen)
    by_trials = f"{', '.join(chosen)} chosen by {tune.trials} trials for each budget" if tune else ""
    return "; ".join(filter(None, (own, by_trials)))
