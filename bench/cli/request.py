"""A request on a grid, and the shell commands that repeat it with another verb."""

import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import bench
from bench.core.environment import own_command
from bench.core.errors import NotMadeError, UserError
from bench.core.paths import expanded

# Options that a verb does not have, or means something else by.
WITHOUT = {
    "report": {"--data-root", "--profile"},
    "cancel": {"--data-root", "--plugin"},
    "check": {"--results"},
}


@dataclass(frozen=True)
class Request:
    """A grid, what changes it, and where its plugins, data and records lie: each as the option of its name has it."""

    grid: str
    profile: str | None = None
    settings: Sequence[str] = ()
    plugin: Sequence[Path] = ()
    data_root: Path | None = None
    results: Path = Path("results")

    def command(self, verb: str, *more: str) -> str:
        """Return the line for a shell that asks `verb` the same, with further words behind it."""
        return shlex.join([*program(), verb, *self.words(verb, *more)])

    def words(self, verb: str, *more: str) -> list[str]:
        """Return the words that ask `verb` the same, with further ones behind them."""
        grid = _path(expanded(self.grid) if self.grid.startswith("~") else self.grid)
        if verb == "report":  # which names a grid as the folder of its records is named
            grid += f"@{self.profile}" if self.profile else ""
            grid += "@rehearsal" if "--rehearse" in more else ""
            more = tuple(word for word in more if word != "--rehearse")
        options = [("--profile", self.profile)] if self.profile else []
        options += [("--set", setting) for setting in self.settings]
        options += [("--plugin", _path(path)) for path in self.plugin]
        if self.data_root not in {None, expanded(os.environ.get("BENCH_DATA") or "data")}:
            options.append(("--data-root", _path(self.data_root)))
        if self.results != Path("results"):
            options.append(("--results", _path(self.results)))
        words = ["--grid", grid] if verb == "run" else [grid]  # as earlier versions of `run` have it, too
        words += [word for option in options if option[0] not in WITHOUT.get(verb, ()) for word in option]
        return [*words, *more]

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


def _path(path: Path | str | None) -> str:
    """Return a path as a shell word that cannot be mistaken for an option or a home folder."""
    return f"./{path}" if str(path).startswith(("-", "~")) else str(path)
