"""`bench.grid.load`: what is a grid, and the one sentence on what is not."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from bench.core.errors import UserError
from bench.grid.cell import Cell
from bench.grid.expand import expand, select
from bench.grid.load import GRIDS, MAX_BYTES
from bench.grid.load import load_grid as read_grid_alone
from bench.grid.schema import MAX_CELLS, Grid
from bench.plan.load import load_grid
from bench.toy.study import find_toy
from methods import methods

BASE: dict[str, Any] = {
    "title": "A test",
    "backbone": "resnet_small",
    "datasets": ["digits"],
    "budgets": [0.5],
    "seeds": [0, 1],
    "arms": ["byol", {"method": "byol", "rela": {"prior": "rand"}}],
    "protocol": {"epochs": 3, "input_size": 16},
}
SHIPPED = sorted(path.stem for path in GRIDS.glob("*.yaml") if not find_toy(path.stem))
Load = Callable[..., Grid]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mine.yaml"


@pytest.fixture
def load(path: Path) -> Load:
    """Load BASE with other values for some of its keys; `text` is added as it is."""

    def load(
        text: str = "",
        profile: str | None = None,
        settings: tuple[str, ...] = (),
        raw: dict[Any, Any] = BASE,
        **changes: Any,
    ) -> Grid:
        path.write_text(yaml.safe_dump(raw | changes, sort_keys=False) + text)
        return load_grid(str(path), profile, settings)

    return load


def sentence(call: Callable[[], object]) -> str:
    """What the UserError that `call` raises says: always one line."""
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert text
    assert "\n" not in text
    assert len(text) < 600
    return text


def ids(cells: list[Cell]) -> list[str]:
    return [cell.key() for cell in cells]


@pytest.mark.parametrize("profile", [None, "mini"])
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_grid_is_one(name: str, profile: str | None) -> None:
    grid = load_grid(name, profile)
    cells = expand(grid)
    assert len(set(ids(cells))) == len(cells) > 0
    assert grid.name == (f"{name}@mini" if profile else name)
    assert grid.title
    if profile:
        assert {(cell.train_images, cell.seed) for cell in cells if not cell.validation} == {(640, 0)}
        backbones = {arm.backbone or "resnet_small" for arm in grid.arms}
        assert {cell.backbone for cell in cells} == backbones
        assert all(cell.protocol.epochs == 2 for cell in cells)


def test_there_are_shipped_grids() -> None:
    assert {"quickstart", "cifar_small", "paper_table1"} <= set(SHIPPED)


def test_table_1_of_the_paper_has_88_cells_a_seed() -> None:
    grid = load_grid("paper_table1")
    cells = expand(grid)
    assert {seed: sum(cell.seed == seed for cell in cells) for seed in grid.seeds} == {0: 88, 1: 88, 2: 88}
    first = [cell for cell in cells if cell.seed == 0]
    assert sum(cell.rela is None and cell.budget == 1 for cell in first) == 4  # BYOL*
    assert sum(cell.rela is None and cell.budget < 1 for cell in first) == 12
    assert sum(cell.rela is not None for cell in first) == 4 * 6 * 3
    imagenet = next(cell for cell in first if cell.dataset == "imagenet1k")
    assert (imagenet.backbone, imagenet.protocol.batch_size, imagenet.protocol.epochs) == ("resnet50", 512, 100)
    assert (imagenet.protocol.probe.batch_size, imagenet.protocol.probe.epochs) == (1024, 100)
    assert {cell.protocol.blur for cell in first if cell.dataset.startswith("cifar")} == {False}


def test_cells_come_in_the_order_of_datasets_arms_budgets_seeds(load: Load) -> None:
    cells = expand(load(budgets=[0.2, 0.5], datasets=["digits", "cifar10"]))
    assert [(c.dataset, c.arm, c.budget, c.seed) for c in cells] == [
        (dataset, arm, budget, seed)
        for dataset in ("digits", "cifar10")
        for arm in ("byol", "rela(byol,rand)")
        for budget in (0.2, 0.5)
        for seed in (0, 1)
    ]


def test_an_arm_has_its_own_budgets_and_a_dataset_its_own_protocol(load: Load) -> None:
    grid = load(
        arms=["byol", {"method": "simclr", "params": {"temperature": 0.2}, "budgets": [1]}],
        datasets=["digits", {"name": "cifar10", "backbone": "resnet18", "protocol": {"probe": {"epochs": 7}}}],
    )
    cells = expand(grid)
    assert {(c.arm, c.budget) for c in cells} == {("byol", 0.5), ("simclr(temperature=0.2)", 1.0)}
    probes = {c.dataset: (c.backbone, c.protocol.epochs, c.protocol.probe.epochs) for c in cells}
    assert probes == {"digits": ("resnet_small", 3, 100), "cifar10": ("resnet18", 3, 7)}


def test_a_star_is_every_method_and_stands_for_its_name(load: Load) -> None:
    grid = load(arms=[{"method": "*"}, {"method": "*", "name": "* + ReLA", "rela": {"prior": "rand"}}])
    of_any_backbone = [name for name in methods if name != "wmse" and not methods.get(name).needs_tokens]
    assert {"byol", "lejepa"} <= {*of_any_backbone} < {*methods}
    assert [arm.method for arm in grid.arms] == of_any_backbone * 2
    assert {cell.arm for cell in expand(grid)} == {*of_any_backbone, *(f"{name} + ReLA" for name in of_any_backbone)}


def test_the_grids_parameters_of_a_method_are_under_those_of_its_arms(load: Load) -> None:
    arms = ["byol", {"method": "byol", "params": {"momentum": 0.5}}, "simclr"]
    grid = load(arms=arms, params={"byol": {"momentum": 0.9, "projection": 8}}, seeds=[0])
    assert [cell.params for cell in expand(grid)] == [
        {"momentum": 0.9, "projection": 8},
        {"momentum": 0.5, "projection": 8},
        {},
    ]
    said = sentence(lambda: load(params={"byoll": {}}))
    assert "params.byoll" in said
    assert "'byol'" in said


def test_a_dataset_may_run_some_arms_alone(load: Load) -> None:
    datasets = ["digits", {"name": "cifar10", "arms": ["byol"]}]
    cells = expand(load(datasets=datasets, seeds=[0]))
    assert [(cell.dataset, cell.arm) for cell in cells] == [
        ("digits", "byol"),
        ("digits", "rela(byol,rand)"),
        ("cifar10", "byol"),
    ]
    said = sentence(lambda: load(datasets=[{"name": "digits", "arms": ["bjol"]}]))
    assert "datasets[0].arms: 'bjol' is no arm" in said
    assert "'byol'" in said


def test_an_arm_may_have_a_backbone_of_its_own(load: Load) -> None:
    grid = load(arms=["byol", {"method": "byol", "backbone": "timm:vit_tiny_patch16_224"}], seeds=[0])
    cells = [(cell.arm, cell.backbone) for cell in expand(grid)]
    assert cells == [("byol", "resnet_small"), ("byol, vit_tiny_patch16_224", "timm:vit_tiny_patch16_224")]


def test_other_arms_leave_out_what_was_said_of_those_that_are_gone() -> None:
    grid = load_grid("cifar_small", settings=["arms=[byol]"])
    assert (len(grid.arms), grid.claims) == (1, ())
    claim = "claims=[{name: c, arm: byol, budget: 0.2, baseline: byol, baseline_budget: 0.5, share: 0.5}]"
    assert len(load_grid("cifar_small", settings=["arms=[byol]", claim]).claims) == 1
    assert load_grid("paper_methods", settings=["arms=[byol, supervised]"]).params == {"supervised": {"classes": 10}}
    assert load_grid("paper_methods", settings=["arms=[byol]"]).params == {}


def test_a_published_value_belongs_to_an_arm(load: Load) -> None:
    point = {"arm": "bjol", "epoch": 10, "linear": 0.5, "source": "nowhere"}
    assert "published[0].arm: 'bjol' is no arm" in sentence(lambda: load(published=[point]))


@pytest.mark.parametrize(
    ("matched", "other", "why"),
    [
        ({"flops_of": "refa"}, {}, "did you mean 'rela'"),
        ({"flops_of": "rela", "rela": {"prior": "rand"}}, {}, "cannot match"),
        ({"flops_of": "rela", "budgets": [0.25]}, {}, "no budget 0.25"),
        ({"flops_of": "second"}, {"name": "second", "method": "byol", "flops_of": "rela"}, "name that one"),
        ({"seconds_of": "refa"}, {}, "arms[1].seconds_of: 'refa' is not an arm; did you mean 'rela'"),
        ({"seconds_of": "rela", "rela": {"prior": "rand"}}, {}, "an arm with rela cannot match another one's seconds"),
        ({"seconds_of": "rela", "accelerate": {"name": "x"}}, {}, "an arm with accelerate cannot match"),
        ({"seconds_of": "rela", "flops_of": "rela"}, {}, "at another one's FLOPs or at its seconds; leave out one"),
        ({"seconds_of": "rela", "recipe": {"schedule": "cosine"}}, {}, "schedule cosine needs the number of steps"),
        (
            {"seconds_of": "rela", "recipe": {"warmup": 0.1}},
            {},
            "arm 'byol, warmup 0.1 at the seconds of rela': warmup",
        ),
        ({"seconds_of": "rela", "recipe": {"teacher": "cosine"}}, {}, "which seconds_of leaves open"),
        ({"seconds_of": "rela", "warm_start": "DIGITS-T"}, {}, "needs 'DIGITS-T' and 'rela', and can wait for one"),
        ({"rela": {"prior": "A-T"}, "warm_start": "B-T"}, {}, "arms[1]: needs 'A-T' and 'B-T'"),
        (
            {"rela": {"prior": "rand"}, "accelerate": {"name": "x", "prior": "rand"}},
            {},
            "both need the targets of a prior",
        ),
        ({"warm_start": "rand"}, {}, "arms[1].warm_start: every arm begins with random weights"),
    ],
)
def test_a_match_that_cannot_be(load: Load, matched: dict[str, Any], other: dict[str, Any], why: str) -> None:
    arms = [{"name": "rela", "method": "byol", "rela": {"prior": "rand", "phase": 0.5}}, {"method": "byol", **matched}]
    assert why in sentence(lambda: load(arms=[*arms, *([other] if other else [])]))


def test_the_order_of_keys_in_the_file_does_not_matter(path: Path) -> None:
    def shuffled(value: Any, draw: random.Random) -> Any:
        if isinstance(value, dict):
            keys = draw.sample(list(value), len(value))
            return {key: shuffled(value[key], draw) for key in keys}
        return [shuffled(item, draw) for item in value] if isinstance(value, list) else value

    raw = yaml.safe_load((GRIDS / "quickstart.yaml").read_text())
    raw["arms"].append({"method": "simclr", "name": "x", "params": {"temperature": 0.3, "projection": 64}})
    found = []
    for seed in range(3):
        path.write_text(yaml.safe_dump(shuffled(raw, random.Random(seed)), sort_keys=False))
        found.append(ids(expand(load_grid(str(path)))))
    assert found[0] == found[1] == found[2]


def test_a_file_without_a_name_is_called_after_itself(load: Load) -> None:
    assert load().name == "mine"
    assert load(name="other").name == "other"


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("2E-04", 2e-4), ("1.e-3", 1e-3), ("+5e0", 5.0), ("1", 1.0)]
)
def test_numbers_as_people_write_them(load: Load, text: str, value: float) -> None:
    grid = load(settings=(f"protocol.lr={text}",))
    assert grid.protocol.lr == value
    assert type(grid.protocol.lr) is float


@pytest.mark.parametrize(
    ("changes", "key", "meant"),
    [
        ({"bugdets": [0.5]}, "bugdets", "budgets"),
        ({"pro-tocol": {}}, "pro-tocol", "protocol"),
        ({"protocol": {"epoch": 3}}, "protocol.epoch", "epochs"),
        ({"protocol": {"batch-size": 3}}, "protocol.batch-size", "batch_size"),
        ({"protocol": {"probe": {"epoch": 3}}}, "protocol.probe.epoch", "epochs"),
        ({"protocol": {"knn": {"temprature": 3}}}, "protocol.knn.temprature", "temperature"),
        ({"arms": ["byol", {"method": "byol", "budget": [1]}]}, "arms[1].budget", "budgets"),
        ({"arms": [{"method": "byol", "rela": {"prior": "rand", "fase": 1}}]}, "arms[0].rela.fase", "phase"),
        ({"datasets": [{"name": "digits", "backbon": "resnet18"}]}, "datasets[0].backbon", "backbone"),
        ({"datasets": [{"name": "digits", "protocol": {"lrr": 1}}]}, "datasets[0].protocol.lrr", "lr"),
        (
            {"datasets": [{"name": "digits", "protocol": {"probe": {"epoch": 1}}}]},
            "datasets[0].protocol.probe.epoch",
            "epochs",
        ),
    ],
)
def test_an_unknown_key(load: Load, path: Path, changes: dict[str, Any], key: str, meant: str) -> None:
    text = sentence(lambda: load(**changes))
    assert text == f"{path}: unknown key {key!r}; did you mean {meant!r}?"


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        ({"protocol": {"epochs": "3"}}, "protocol.epochs", "'3'"),
        ({"protocol": {"epochs": True}}, "protocol.epochs", "True"),
        ({"protocol": {"epochs": 3.0}}, "protocol.epochs", "3.0"),
        ({"protocol": {"epochs": None}}, "protocol.epochs", "None"),
        ({"protocol": {"epochs": 0}}, "protocol.epochs", "0"),
        ({"protocol": {"batch_size": 1}}, "protocol.batch_size", "1"),
        ({"protocol": {"lr": "fast"}}, "protocol.lr", "'fast'"),
        ({"protocol": {"lr": True}}, "protocol.lr", "True"),
        ({"protocol": {"lr": float("nan")}}, "protocol.lr", "nan"),
        ({"protocol": {"lr": float("inf")}}, "protocol.lr", "inf"),
        ({"protocol": {"weight_decay": -1}}, "protocol.weight_decay", "-1"),
        ({"protocol": {"blur": 0}}, "protocol.blur", "0"),
        ({"protocol": {"blur": "no way"}}, "protocol.blur", "'no way'"),
        ({"protocol": {"precision": "fp8"}}, "protocol.precision", "'fp8'"),
        ({"protocol": {"input_size": 2}}, "protocol.input_size", "2"),
        ({"protocol": {"input_size": 16, "eval_resize": 15}}, "protocol.eval_resize", "15"),
        ({"protocol": {"evaluate_at": [0.5, 2]}}, "protocol.evaluate_at[1]", "2"),
        ({"protocol": {"evaluate_at": 0.5}}, "protocol.evaluate_at", "0.5"),
        ({"protocol": {"probe": 5}}, "protocol.probe", "5"),
        ({"protocol": None}, "protocol", "None"),
        ({"protocol": [1]}, "protocol", "[1]"),
        ({"budgets": [0]}, "budgets[0]", "0"),
        ({"budgets": [0.5, 1.5]}, "budgets[1]", "1.5"),
        ({"budgets": [-0.1]}, "budgets[0]", "-0.1"),
        ({"budgets": [float("nan")]}, "budgets[0]", "nan"),
        ({"budgets": ["half"]}, "budgets[0]", "'half'"),
        ({"budgets": [True]}, "budgets[0]", "True"),
        ({"budgets": []}, "budgets", "[]"),
        ({"budgets": 0.5}, "budgets", "0.5"),
        ({"seeds": [-1]}, "seeds[0]", "-1"),
        ({"seeds": [0.5]}, "seeds[0]", "0.5"),
        ({"seeds": [False]}, "seeds[0]", "False"),
        ({"seeds": []}, "seeds", "[]"),
        ({"seeds": None}, "seeds", "None"),
        ({"backbone": None}, "backbone", "None"),
        ({"backbone": 18}, "backbone", "18"),
        ({"name": "../../elsewhere"}, "name", "'../../elsewhere'"),
        ({"name": 5}, "name", "5"),
        ({"arms": "byol"}, "arms", "'byol'"),
        ({"arms": []}, "arms", "[]"),
        ({"arms": [3]}, "arms[0]", "3"),
        ({"arms": [{"method": "byol", "budgets": [0]}]}, "arms[0].budgets[0]", "0"),
        ({"arms": [{"method": "byol", "rela": "rand"}]}, "arms[0].rela", "'rand'"),
        ({"arms": [{"method": "byol", "rela": {"prior": None}}]}, "arms[0].rela.prior", "None"),
        ({"arms": [{"method": "byol", "rela": {"prior": "rand", "phase": 2}}]}, "arms[0].rela.phase", "2"),
        ({"arms": [{"method": "byol", "rela": {"prior": "rand", "phase": "?"}}]}, "arms[0].rela.phase", "'?'"),
        ({"arms": [{"method": "byol", "params": [1]}]}, "arms[0].params", "[1]"),
        ({"arms": [{"method": "byol", "params": {"a": float("nan")}}]}, "arms[0].params", "{'a': nan}"),
        ({"datasets": [{"name": "digits", "train_images": 0}]}, "datasets[0].train_images", "0"),
        ({"datasets": [{"name": "digits", "protocol": {"lr": "x"}}]}, "datasets[0].protocol.lr", "'x'"),
        ({1: 2}, "[1]", "1"),
        ({"profiles": None}, "profiles", "None"),
        ({"profiles": {"a-b": 3}}, "profiles.a-b", "3"),
    ],
)
def test_an_ill_typed_value(load: Load, path: Path, changes: dict[Any, Any], key: str, value: str) -> None:
    assert sentence(lambda: load(raw=BASE | changes)).startswith(f"{path}: {key}: {value}: ")


def test_a_share_or_a_word_names_both(load: Load) -> None:
    text = sentence(lambda: load(arms=[{"method": "byol", "rela": {"prior": "rand", "phase": 2}}]))
    assert "'adaptive', or input should be less than or equal to 1" in text


@pytest.mark.parametrize("key", ["backbone", "datasets", "seeds", "arms"])
def test_a_missing_key(path: Path, key: str) -> None:
    path.write_text(yaml.safe_dump({k: v for k, v in BASE.items() if k != key}))
    assert sentence(lambda: load_grid(str(path))) == f"{path}: key {key!r} is missing"


def test_a_missing_nested_key(load: Load, path: Path) -> None:
    assert sentence(lambda: load(arms=[{"method": "byol", "rela": {}}])) == (
        f"{path}: key 'arms[0].rela.prior' is missing"
    )


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"datasets": ["digits", "cifar10", {"name": "digits", "train_images": 100}]}, "datasets[2]: dataset digits"),
        ({"seeds": [0, 1, 0]}, "seeds[2]: seed 0"),
        ({"budgets": [0.5, 0.5]}, "budgets[1]: budget 0.5"),
        ({"budgets": [1, 1.0]}, "budgets[1]: budget 1.0"),
        ({"arms": ["byol", "byol"]}, "arms[1]: arm byol"),
        ({"arms": ["byol", {"method": "simclr", "name": "byol"}]}, "arms[1]: arm byol"),
        ({"arms": [{"method": "byol", "budgets": [0.2, 0.2]}]}, "budgets[1]: budget 0.2"),
    ],
)
def test_something_twice(load: Load, path: Path, changes: dict[str, Any], what: str) -> None:
    assert sentence(lambda: load(**changes)) == f"{path}: {what} is there twice; remove one"


def test_the_same_arm_under_another_name(load: Load, path: Path) -> None:
    arms = [
        {"method": "simclr", "params": {"temperature": 0.5, "projection": 64}, "budgets": [0.2]},
        {"method": "simclr", "params": {"projection": 64, "temperature": 0.5}, "name": "again"},
    ]
    text = sentence(lambda: load(arms=arms))
    assert text.startswith(f"{path}: arms[1]: arm 'again' is the same as 'simclr(projection=64,temperature=0.5)'")


def test_prior_files_of_one_name_cannot_be_told_apart(load: Load, path: Path) -> None:
    def arm(file: str) -> dict[str, Any]:
        return {"method": "byol", "rela": {"prior": f"file:{file}", "backbone": "resnet_small"}}

    text = sentence(lambda: load(arms=[arm("a/model.pt"), arm("b/model.pt")]))
    assert text.startswith(f"{path}: arms[1]: ")
    assert "rename one file" in text
    assert len(load(arms=[arm("a/model.pt"), arm("a/other.pt")]).arms) == 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("seeds: [0]\n", "line {}: key 'seeds' is there twice"),
        ("x: {a: 1, a: 2}\n", "line {}: key 'a' is there twice"),
        ("? [a]\n: 1\n", "line {}: a key must be a plain word"),
        ("x: &x [1]\ny: *x\n", "line {1}: aliases (*name) are not allowed"),
        ("x: !!python/object/apply:os.system [exit]\n", "python/object/apply:os.system"),
        ("x: !!python/name:os.system\n", "python/name:os.system"),
        ("x: !!binary aGk=\n", "binary"),
        ("x: [1\n", "expected ',' or ']'"),
        ("x: \x00\n", "special characters are not allowed"),
        ("\tx: 1\n", "found character"),
        (f"x: {'[' * 20_000}\n", "recursion"),
        (f"x: {'9' * 5_000}\n", "integer string conversion"),
        ("--- \nx: 1\n", "expected a single document"),
    ],
)
def test_not_plain_yaml(load: Load, path: Path, text: str, why: str) -> None:
    found = sentence(lambda: load(text))
    assert found.startswith(f"{path}: not valid YAML: ")
    line = path.read_text().removesuffix(text).count("\n") + 1
    assert why.format(line, line + 1) in found


def test_an_alias_bomb_is_not_unfolded(path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    path.write_text("\n".join(levels))
    assert "aliases (*name) are not allowed" in sentence(lambda: load_grid(str(path)))


def test_python_objects_are_not_made(load: Load, tmp_path: Path) -> None:
    target = tmp_path / "made"
    sentence(lambda: load(f"x: !!python/object/apply:pathlib.Path.touch [!!python/object:pathlib.Path [{target}]]\n"))
    sentence(lambda: load(f"x: !!python/object/apply:os.mkdir ['{target}']\n"))
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"title: \xff\xfe\n", "not a UTF-8 text file"),
        ("title: x".encode("utf-16"), "not a UTF-8 text file"),
        (b"", "a grid is a mapping"),
        (b"# nothing\n", "a grid is a mapping"),
        (b"- byol\n", "a grid is a mapping"),
        (b"byol", "a grid is a mapping"),
        (b"#" * (MAX_BYTES + 1), "over 200,000 bytes"),
    ],
)
def test_not_a_grid(path: Path, content: bytes, why: str) -> None:
    path.write_bytes(content)
    text = sentence(lambda: load_grid(str(path)))
    assert text.startswith(f"{path}: ")
    assert why in text


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": [0, 0]},
        {"claims": [{"name": "c", "arm": "x", "budget": 0.5}]},
        {"arms": [{"method": "byol", "flops_of": "x"}]},
        {"params": {"x": {}}},
        {"datasets": [{"name": "digits", "protocol": {"epochs": 0}}]},
        {"seeds": list(range(MAX_CELLS))},
        {"arms": [{"method": "byol"}, {"method": "byol", "name": "again"}]},
    ],
)
def test_a_grid_that_exists_is_valid(changes: dict[str, Any]) -> None:
    raw = BASE | {"name": "g", "datasets": [{"name": "digits"}], "arms": [{"method": "byol"}, {"method": "simclr"}]}
    assert Grid.model_validate(raw)
    with pytest.raises(ValidationError):
        Grid.model_validate(raw | changes)


def test_without_the_methods_a_star_is_none(load: Load, path: Path) -> None:
    path.write_text(yaml.safe_dump(BASE | {"arms": [{"method": "*"}]}))
    assert sentence(lambda: read_grid_alone(str(path))).startswith(f"{path}: arms: method '*'")
    named = read_grid_alone(str(path), methods=lambda: ["byol", "moco"])
    assert [arm.method for arm in named.arms] == ["byol", "moco"]


def test_no_such_grid(tmp_path: Path) -> None:
    assert sentence(lambda: load_grid("quickstrat")) == "unknown grid 'quickstrat'; did you mean 'quickstart'?"
    missing = tmp_path / "none.yaml"
    assert sentence(lambda: load_grid(str(missing))) == f"grid {missing}: no such file"
    assert "no such file" in sentence(lambda: load_grid(f"{tmp_path}/{'a' * 300}.yaml"))
    assert "unknown grid" in sentence(lambda: load_grid("."))


def test_set_merges_into_what_is_there(load: Load) -> None:
    grid = load(settings=("protocol.epochs=2", "protocol.probe.lr=1e-2", "seeds=[7]", "datasets=[cifar10]"))
    assert (grid.protocol.epochs, grid.protocol.probe.lr, grid.protocol.input_size) == (2, 1e-2, 16)
    assert (grid.seeds, grid.datasets[0].name) == ((7,), "cifar10")


def test_set_comes_after_the_profile(load: Load) -> None:
    assert load(profile="mini", settings=("protocol.epochs=5",)).protocol.epochs == 5


@pytest.mark.parametrize("setting", ["protocol.epochs", "=3", "=", ""])
def test_a_malformed_set(load: Load, setting: str) -> None:
    assert sentence(lambda: load(settings=(setting,))).startswith(f"--set {setting}: write KEY=VALUE")


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("protocol.epoch=2", "unknown key 'protocol.epoch'; did you mean 'epochs'?"),
        ("protocl.epochs=2", "unknown key 'protocl'; did you mean 'protocol'?"),
        ("protocol..epochs=2", "unknown key 'protocol.'"),
        ("protocol.epochs.x=2", "protocol.epochs: {'x': 2}"),
        ("protocol.epochs=", "protocol.epochs: None"),
        ("protocol.epochs=two", "protocol.epochs: 'two'"),
        ("protocol.epochs=[1", "not valid YAML"),
        ("protocol.epochs=*x", "aliases"),
        ("arms.0.method=byol", "arms: {'0': {'method': 'byol'}}"),
        ("a\nb=1", "words with dots between them"),
    ],
)
def test_a_wrong_set_is_named(load: Load, setting: str, why: str) -> None:
    text = sentence(lambda: load(settings=(setting,)))
    assert f"--set {' '.join(setting.split())}" in text
    assert why in text


def test_a_profile_shrinks_the_grid(load: Load) -> None:
    grid = load(profile="two", profiles={"two": {"seeds": [5], "protocol": {"epochs": 2}, "datasets": ["cifar10"]}})
    assert (grid.name, grid.seeds, grid.protocol.epochs) == ("mine@two", (5,), 2)
    assert (grid.protocol.input_size, grid.datasets[0].name) == (16, "cifar10")


def test_a_grid_adds_to_mini(load: Load) -> None:
    grid = load(profile="mini", profiles={"mini": {"protocol": {"epochs": 1}}})
    assert (grid.protocol.epochs, grid.protocol.batch_size, grid.seeds) == (1, 32, (0,))


@pytest.mark.parametrize(
    ("profiles", "asked", "why"),
    [
        ({}, "mni", "unknown profile 'mni'; did you mean 'mini'?"),
        ({"large": {}}, "lrage", "unknown profile 'lrage'; did you mean 'large'?"),
        ({1: {}}, "one", "unknown profile 'one'; known: 1, mini"),
        ([], "one", "unknown profile 'one'; known: mini"),
        ({"x": 3}, "x", "profiles.x must be a mapping"),
        ({"x": {"protocol": {"epoch": 3}}}, "x", "unknown key 'protocol.epoch'; did you mean 'epochs'?"),
    ],
)
def test_a_wrong_profile(load: Load, path: Path, profiles: Any, asked: str, why: str) -> None:
    text = sentence(lambda: load(profile=asked, profiles=profiles))
    assert text.startswith(f"{path}: ")
    assert why in text


@pytest.mark.parametrize(
    ("expression", "count"),
    [
        ("dataset=digits", 8),
        ("arm=byol", 4),
        ("prior=rand,seed=1", 2),
        ("prior=none", 4),
        ("budget=0.2", 4),
        ("budget=0.2,budget=0.50", 8),
        (" seed = 0 , method = byol ", 4),
    ],
)
def test_only_selects(load: Load, expression: str, count: int) -> None:
    cells = expand(load(budgets=[0.2, 0.5]))
    chosen = select(cells, expression)
    assert len(chosen) == count
    assert [cell for cell in cells if cell in chosen] == chosen


COMMAS = ["a", "a, b", "a, b, seed=1", "rela(byol(x=1,seed=0),rand)", "prior=rand", " a ", "x='y', z"]


@pytest.mark.parametrize("name", COMMAS)
def test_only_reaches_a_name_with_commas(load: Load, name: str) -> None:
    arms = [{"method": "byol", "name": each, "params": {"momentum": i / 10}} for i, each in enumerate(COMMAS)]
    cells = expand(load(arms=arms))
    mine = [cell for cell in cells if cell.arm == name]
    assert select(cells, f"arm={name}") == mine
    assert select(cells, f"seed=1,arm={name}") == [cell for cell in mine if cell.seed == 1]
    assert select(cells, f"arm={name},budget=0.5,seed=0") == [cell for cell in mine if cell.seed == 0]
    two = [cell for cell in cells if cell.arm in {name, COMMAS[0]}]
    assert select(cells, f"arm={name} , arm={COMMAS[0]}") == two


def test_only_reaches_names_that_nobody_gave(load: Load) -> None:
    arms = [{"method": "byol", "params": {"momentum": 0.9, "hidden": 8}, "rela": {"prior": "rand"}}, "byol"]
    cells = expand(load(arms=arms))
    assert {cell.arm for cell in select(cells, "arm=rela(byol(hidden=8,momentum=0.9),rand),seed=0")} == {cells[0].arm}


@pytest.mark.parametrize("name", SHIPPED)
def test_only_reaches_every_arm_that_is_shipped(name: str) -> None:
    cells = expand(load_grid(name))
    for arm in {cell.arm for cell in cells}:
        assert select(cells, f"arm={arm}") == [cell for cell in cells if cell.arm == arm]
    for prior in {cell.rela.prior for cell in cells if cell.rela}:
        assert {cell.rela.prior for cell in select(cells, f"prior={prior}") if cell.rela} == {prior}


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("datset=digits", "'datset=digits' is not KEY=VALUE; did you mean 'dataset'?"),
        ("dataset", "'dataset' is not KEY=VALUE"),
        ("", "is not KEY=VALUE"),
        ("dataset=digits,", "'' is not KEY=VALUE"),
        ("dataset=digits,buget=0.5", "'buget=0.5' is not KEY=VALUE; did you mean 'budget'?"),
        ("arm=byol, shufled", "no cell has arm=byol, shufled"),
        ("dataset=digts", "no cell has dataset=digts; did you mean 'digits'?"),
        ("seed=9", "no cell has seed=9"),
        ("budget=half", "budget is a number, not 'half'"),
        ("budget=nan", "no cell has budget=nan"),
        ("arm=byol,prior=rand", "no cell has all of these together"),
        ("dataset=a\nb", "no cell has dataset=a b"),
    ],
)
def test_a_wrong_only(load: Load, expression: str, why: str) -> None:
    cells = expand(load())
    text = sentence(lambda: select(cells, expression))
    assert text.startswith(f"--only {expression}".splitlines()[0])
    assert why in text
