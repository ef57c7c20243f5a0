"""Which edits of the code mark a result as stale, and which do not: on copies of the code as it is."""

import ast
import shutil
from pathlib import Path

import pytest

from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.measure.code import Code
from bench.plan import stale
from bench.plan.stale import PARTS, REGISTRIES, code_of, digest, stale_parts
from bench.store.record import Finished
from tests.code import changed, with_pair
from tests.report.test_report import record_of

ROOT = Path(__file__).parents[2]
GRID = """
backbone: resnet_tiny
datasets: [digits]
seeds: [0]
arms:
  - {name: byol, method: byol}
  - {name: simclr, method: simclr, rela: {prior: rand}}
  - {name: simreg, method: moco, accelerate: {name: simreg, prior: "timm:resnet18.a1_in1k"}}
  - {name: warm, method: byol, backbone: resnet20_cifar, warm_start: CF10-R20}
  - {name: cifar, method: byol, backbone: "timm:resnet18", rela: {prior: CF10-R20, layer: layer2}}
  - {name: nnclr, method: nnclr, rela: {prior: DIGITS-T}}
"""
ARMS = {"byol", "simclr", "simreg", "warm", "cifar", "nnclr"}
CHANGES = [  # file, what stands there, what instead, the arms that are stale (all: all), and a part that is
    ("methods/byol", "self.criterion(p1, z0)) / 2", "self.criterion(p1, z0))", "byol warm cifar", "method"),
    ("methods/byol", "momentum: float = 0.99", "momentum: float = 0.996", "byol warm cifar", "method"),
    ("methods/byol", "import Neg", "import NTXentLoss as Neg", "byol warm cifar", "method"),
    ("methods/parts", "1 - self.momentum", "self.momentum", "all", "method"),
    ("methods/parts", "batch.detach()", "batch", "all", "method"),
    ("methods/simclr", "z.T / self", "z.T * self", "simclr nnclr", "method"),
    ("methods/moco", "logits = torch.cat", "logits = torch.hstack", "simreg", "method"),
    ("methods/rela", "0.01, 0.995", "0.01, 0.99", "simclr cifar nnclr", "ReLA"),
    ("methods/rela", "loss.detach().double()", "loss.double()", "simclr cifar nnclr", "ReLA"),
    ("methods/simreg", "return 2 - 2", "return 1 - 2", "simreg", "accelerator"),
    ("methods/build", '(cell.seed, "method")', '(cell.seed, "map")', "all", "training"),
    ("bench/data/augment", "alpha=0.587", "alpha=0.578", "all", "views"),
    ("bench/data/augment", "blur, solarise = happens", "solarise, blur = happens", "all", "views"),
    ("bench/data/augment", "flip: float = 0.5", "flip: float = 0.4", "all", "method"),
    ("bench/data/augment", "_contrast, _saturation, _hue)", "_saturation, _contrast, _hue)", "all", "views"),
    ("bench/data/resample", "_TRIES = 10", "_TRIES = 9", "all", "views"),
    ("bench/data/decode", "transpose(2, 0, 1)", "transpose(2, 1, 0)", "all", "evaluation"),
    ("bench/data/sampler", "return order[: ", "return order[-", "all", "views"),
    ("bench/data/images", "balanced_part(labels, cell", "balanced_part(-labels, cell", "all", "views"),
    ("bench/data/dataset", "seed: int = 0)", "seed: int = 1)", "all", "views"),
    ("bench/train/loop", "            self.optimiser.zero_grad()\n", "", "all", "training"),
    ("bench/train/recipe", '== "constant" else 0.0', '== "constant" else 1e-5', "all", "training"),
    ("bench/train/cell", "images.train, images.judging, view", "images.train, images.train, view", "all", "evaluation"),
    ("bench/train/start", "ours[1] / own[1]", "own[1] / ours[1]", "warm", "warm start"),
    ("bench/core/seeds", "(seed, *purpose)", "(*purpose, seed)", "all", "views"),
    ("bench/models/backbones", "blocks=1, stride=2", "blocks=2, stride=2", "byol simclr simreg nnclr", "backbone"),
    ("bench/models/backbones", "num_classes=0, **extra", "num_classes=1, **extra", "all", "backbone"),
    ("bench/evaluate/linear_probe", "LAST_EPOCHS = 3", "LAST_EPOCHS = 5", "all", "evaluation"),
    ("bench/evaluate/knn", "temperature).exp()", "temperature).sin()", "all", "evaluation"),
    ("bench/evaluate/score", "EPSILON = 1e-7", "EPSILON = 1e-6", "all", "evaluation"),
    ("bench/measure/flops", "return int(counter", "return 2 * int(counter", "all", "training"),
    ("bench/targets/reduce", "* largest.sign()", "* -largest.sign()", "simclr simreg cifar nnclr", "targets"),
    ("bench/targets/make", ".flatten(1).float()", ".float()", "simclr simreg cifar nnclr", "targets"),
    ("priors/rand", "self.cell.seed).module", "self.cell.seed + 1).module", "simclr", "prior"),
    ("priors/timm", "size == self.own_size", "size != self.own_size", "simreg cifar warm", "prior"),
    ("priors/catalogue", '"resnet20_cifar",', '"resnet_small",', "cifar warm", "prior"),
    ("priors/joined", "output.mean(dim=1)", "output.sum(dim=1)", "cifar", "layer and ensemble"),
    ("priors/trained", "self.maker.backbone, self.size", "self.maker.backbone, 32", "nnclr", "prior"),
]
UNSEEN = [  # edits after which nothing is stale
    ("methods/byol", '"""A student predicts', '"""The student predicts'),
    ("methods/byol", "        x0, x1 = batch.views\n", "\n        # both of them\n        x0, x1 = batch.views\n\n"),
    ("methods/byol", "x0, x1 = batch.views", "(x0, x1) = (batch.views)"),
    ("methods/byol", "def loss(self, batch: Batch) -> Tensor:", "def loss(self, batch):"),
    ("methods/byol", "from torch import Tensor, nn\n\nfrom", "from torch import nn\nfrom torch import Tensor\n\nfrom"),
    ("methods/parts", "def uniform(", "def never_used(x):\n    return x\n\n\ndef uniform("),
    ("methods/barlow_twins", "recordable = True", "recordable = False"),
    ("bench/models/backbones", "(16, 32, 64, 128), blocks=1", "(16, 32, 64, 128), blocks=2"),  # of another one
    ("bench/data/sampler", "raise the budget or lower", "raise the budget, or lower"),
    ("bench/train/cell", "ASK_EVERY = 16  # steps", "ASK_EVERY = 16  # of the steps"),
    ("bench/report/facts", "LEAST_RANK = 2.0", "LEAST_RANK = 3.0"),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code."""
    root = tmp_path_factory.mktemp("code")
    for package in ("bench", "methods", "priors"):
        shutil.copytree(ROOT / package, root / package, ignore=lambda _, names: [n for n in names if n == "shipped"])
    return root


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    """A record of each arm, with the digests of the code as it is."""
    path = tmp_path_factory.mktemp("grid") / "trial.yaml"
    path.write_text(GRID)
    cells = {cell.arm: cell for cell in expand(load_grid(str(path))) if cell.seed == 0 and cell.budget == 1.0}
    assert cells.keys() == ARMS
    return {arm: record_of(cell).model_copy(update={"code": code_of(cell)}) for arm, cell in cells.items()}


def stale_arms(records: dict[str, Finished], root: Path) -> dict[str, tuple[str, ...]]:
    code = Code(root)
    return {arm: parts for arm, record in records.items() if (parts := stale_parts(record, code))}


def edited(root: Path, file: str, before: str, after: str) -> Path:
    """Change a file, and return it."""
    path = root / f"{file}.py"
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    return path


def restore(root: Path, path: Path) -> None:
    shutil.copy(ROOT / path.relative_to(root), path)


@pytest.mark.parametrize(("file", "before", "after", "arms", "part"), CHANGES)
def test_a_change_marks_the_results_that_it_decides(
    records: dict[str, Finished], source: Path, file: str, before: str, after: str, arms: str, part: str
) -> None:
    path = edited(source, file, before, after)
    try:
        found = stale_arms(records, source)
    finally:
        restore(source, path)
    assert found.keys() == (ARMS if arms == "all" else {*arms.split()})
    assert any(part in parts for parts in found.values())


@pytest.mark.parametrize(("file", "before", "after"), UNSEEN)
def test_what_changes_no_result_marks_none(
    records: dict[str, Finished], source: Path, file: str, before: str, after: str
) -> None:
    path = edited(source, file, before, after)
    try:
        assert stale_arms(records, source) == {}
    finally:
        restore(source, path)


def test_a_copy_in_another_layout_and_order_marks_nothing(records: dict[str, Finished], source: Path) -> None:
    """Of every file: no comments, other lines and quotes; and the methods' helpers turned around."""
    assert set(PARTS) == {part for record in records.values() for part in record.code or {}}
    for path in source.rglob("*.py"):
        path.write_text(ast.unparse(ast.parse(path.read_text(encoding="utf-8"))) + "\n", encoding="utf-8")
    path = source / "methods" / "parts.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    first = next(index for index, each in enumerate(tree.body) if isinstance(each, ast.ClassDef))
    tree.body[first:] = tree.body[: first - 1 : -1]
    path.write_text(ast.unparse(tree) + "\n", encoding="utf-8")
    try:
        assert stale_arms(records, source) == {}
    finally:
        for package in ("bench", "methods", "priors"):
            shutil.copytree(ROOT / package, source / package, dirs_exist_ok=True)


def test_a_definition_in_another_file_marks_nothing(records: dict[str, Finished], source: Path) -> None:
    """The blur moves to where it is used, and the momentum network to a file of its own."""
    text = (source / "bench/data/resample.py").read_text(encoding="utf-8")
    blur = text.split("def gaussian(")[1].split("def send(")[0]
    files = [edited(source, "bench/data/resample", f"def gaussian({blur}", "")]
    files += [edited(source, "bench/data/augment", "crop_boxes, gaussian, resample,", "_REACH, crop_boxes, resample,")]
    files += [edited(source, "bench/data/augment", "def apply(", f"def gaussian({blur}def apply(")]
    text = (source / "methods/parts.py").read_text(encoding="utf-8")
    momentum = text[text.index("class Momentum") : text.index("class Queue")]
    moved = source / "methods" / "momentum.py"
    moved.write_text(text[: text.index("class Momentum")] + momentum, encoding="utf-8")
    files += [edited(source, "methods/parts", momentum, "")]
    apart = "import Queue\nfrom methods.momentum import Momentum"
    files += [edited(source, "methods/base", "import Momentum, Queue", apart)]
    files += [
        edited(
            source, "methods/__init__", "import Momentum, Queue", "import Queue\nfrom methods.momentum import Momentum"
        )
    ]
    try:
        assert stale_arms(records, source) == {}
        edited(source, "methods/momentum", "1 - self.momentum", "self.momentum")
        assert stale_arms(records, source).keys() == ARMS
    finally:
        moved.unlink()
        for path in files:
            restore(source, path)


def test_every_name_has_a_digest_of_its_own() -> None:
    """Each root is defined, and each method, backbone and prior differs from all others."""
    code = Code(ROOT)
    for part in PARTS.values():
        assert all(code.defines(place) for place in part.places())
    for part, count in (("method", 25), ("backbone", 9), ("accelerator", 6), ("prior", 3)):
        registry = PARTS[part].registry
        assert registry
        names = code.registered(REGISTRIES[registry][0], registry)
        assert len({digest(code, part, name) for name in names}) == len(names) >= count


def test_the_code_of_a_plugin_is_digested_with_what_it_uses(tmp_path: Path, source: Path) -> None:
    text = (
        "from methods import methods\nfrom methods.simclr import SimCLR\n\n\n"
        "@methods.register('mine')\nclass Mine(SimCLR):\n    factor = 3\n"
    )
    plugin = tmp_path / "plugin.py"
    place = [(str(plugin), "Mine")]
    found = []
    for change in ("", "factor = 4", "# factor"):
        plugin.write_text(text.replace("factor = 3", change) if change == "factor = 4" else text + change)
        found.append(Code(source).digest(place, ("methods",)))
    path = edited(source, "methods/simclr", "z.T / self", "z.T * self")
    found.append(Code(source).digest(place, ("methods",)))
    restore(source, path)
    assert found[0] == found[2]
    assert len(set(found)) == 3


def test_code_that_gives_the_same_results_is_listed_and_marks_nothing(
    records: dict[str, Finished], source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = edited(source, "methods/byol", "/ 2", "* 0.5")
    try:
        now = Code(source)
        assert {*stale_arms(records, source)} == {"byol", "warm", "cifar"}
        pairs = list(changed(Code(ROOT), now, ["method", "views"]))
        known = [(part, name) for part, name, _, _ in pairs]
        assert ("method", "byol") in known
        assert ("method", "simclr") not in known
        groups: list[list[str]] = []
        for _, _, then, today in pairs:
            groups = with_pair(groups, then, today)
        monkeypatch.setattr(stale, "_groups", lambda: [set(group) for group in groups])
        assert stale_arms(records, source) == {}
    finally:
        restore(source, path)
    assert with_pair([["a", "b"], ["c", "d"], ["e", "f"]], "b", "c") == [["e", "f"], ["a", "b", "c", "d"]]


def test_a_record_that_does_not_know_its_code_is_not_marked(records: dict[str, Finished], source: Path) -> None:
    record = records["byol"].model_copy(update={"code": None})
    path = edited(source, "methods/byol", "/ 2", "* 2")
    assert stale_parts(record, Code(source)) == ()
    gone = records["byol"].model_copy(update={"code": {"a part of then": "0" * 16}})
    assert stale_parts(gone, Code(source)) == ()
    restore(source, path)
