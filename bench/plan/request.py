"""A request on a grid, and the shell commands that repeat it with another verb."""

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import bench
from bench.core.environment import own_command
from bench.core.errors import NotMadeError, UserError
from bench.core.paths import Paths, expanded, is_file

if TYPE_CHECKING:
    from bench.grid.schema import Grid

# Options that a verb does not have, or means something else by.
WITHOUT = {
    "report": {"--data-root"},
    "cancel": {"--data-root", "--plugin"},
    "check": {"--results"},
}


def default_data() -> Path:
    """Return the folder of datasets and priors where no option names one."""
    return expanded(os.environ.get("BENCH_DATA") or "data")


def split_profile(name: str) -> tuple[str, str | None]:
    """Return the grid and the profile that GRID@PROFILE names; a file of that name is a grid without a profile."""
    grid, _, profile = name.rpartition("@")
    return (grid, profile) if grid and "/" not in profile and not is_file(expanded(name)) else (name, None)


@dataclass(frozen=True)
class Request:
    """A grid, what changes it, and where its plugins, data and records lie: each as the option of its name has it."""

    grid: str
    profile: str | None = None
    settings: tuple[str, ...] = ()
    plugins: tuple[Path, ...] = ()
    data_root: Path = field(default_factory=default_data)
    results: Path = Path("results")

    def load(self) -> "tuple[Grid, Paths]":
        """Return the grid, and where its data and records lie. Raises UserError."""
        from bench.plan.load import load_grid

        grid = load_grid(self.grid, self.profile, self.settings)
        return grid, Paths(data=self.data_root, results=self.results, grid=grid.name)

    def command(self, verb: str, *more: str) -> str:
        """Return the line for a shell that asks `verb` the same, with further words behind it."""
        return shlex.join([*program(), verb, *self.words(verb, *more)])

    def words(self, verb: str, *more: str) -> list[str]:
        """Return the words that ask `verb` the same, with further ones behind them."""
        grid = _path(expanded(self.grid) if self.grid.startswith("~") else self.grid)
        grid += f"@{self.profile}" if self.profile else ""
        if verb == "report" and "--rehearse" in more:  # it names a grid as the folder of its records is named
            grid += "@rehearsal"
            more = tuple(word for word in more if word != "--rehearse")
        options = [("--set", setting) for setting in self.settings]
        options += [("--plugin", _path(path)) for path in self.plugins]
        if self.data_root != default_data():
            options.append(("--data-root", _path(self.data_root)))
        if self.results != Path("results"):
            options.append(("--results", _path(self.results)))
        words = [word for option in options if option[0] not in WITHOUT.get(verb, ()) for word in option]
        return [grid, *words, *more]

    @contextmanager
    def naming_commands(self) -> Iterator[None]:
        """Add the command that makes the missing results to a NotMadeError."""
        try:
            yield
        except NotMadeError as error:
            raise UserError(f"{error}; `{self.command(*error.by)}` makes it") from error


def program() -> list[str]:
    """Return this program as a user would write it: `rela-bench` where pip has installed it, else `python -m bench`.

    By its name alone where a shell finds it.
    """
    python, first, *_ = own_command()
    script = Path(python).with_name("rela-bench") if first == "-m" else Path(first)
    program, *more = [str(script)] if first != "-m" or _is_ours(script) else own_command()
    name = Path(program).name
    return [name if shutil.which(name) == program else program, *more]


def _is_ours(script: Path) -> bool:
    """Return whether an installed command starts this program, and not another version of it."""
    spec = find_spec("rela_bench") if script.is_file() else None
    return spec is not None and Path(bench.__file__).parent.parent in Path(spec.origin or "").parents


def _path(path: Path | str) -> str:
    """Return a path as a shell word that cannot be mistaken for an option or a home folder."""
    return f"./{path}" if str(path).startswith(("-", "~")) else str(path)
