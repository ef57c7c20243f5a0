"""What the site has that is in no page of `docs/`: the reference made from the code, and the shipped reports."""

import inspect
import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from typer.cli import get_docs_for_click

from bench.cli.main import app
from bench.grid.schema import Grid
from bench.grid.validate import models_in

ROOT = Path(__file__).parent.parent
SHOWN = (".html", ".png")  # of a shipped report


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the shipped reports."""
    for path in sorted(ROOT.glob("reports/*/*")):
        if path.suffix in SHOWN:
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in what is made from the code."""
    for mark, make in (("<!-- grid keys -->", grid_keys), ("<!-- command line -->", command_line)):
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


def grid_keys() -> str:
    """Return a table of the keys of each model of a grid, with the comment that stands beside each in the code."""
    found: list[type[BaseModel]] = [Grid]
    for model in found:  # grows as it goes
        for field in model.model_fields.values():
            found += [inner for inner in models_in(field.annotation) if inner not in found]
    return "\n\n".join(map(_table, found))


def _table(model: type[BaseModel]) -> str:
    comments: dict[str, str] = {}
    for each in reversed(model.__mro__[: model.__mro__.index(BaseModel)]):
        comments |= dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(each), re.MULTILINE))
    lines = [f"## {model.__name__}", "", (inspect.getdoc(model) or "").replace("\n\n", "\n"), ""]
    lines += ["| Key | Default | |", "| --- | --- | --- |"]
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else f"`{_plain(field.get_default(call_default_factory=True))}`"
        lines.append(f"| `{name}` | {default} | {comments.get(name, '')} |")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    return type(value).__name__ if isinstance(value, BaseModel) else str(value)


def command_line() -> str:
    """Return what the command line says of itself."""
    command = typer.main.get_group(app)
    for name in [name for name, verb in command.commands.items() if verb.hidden]:
        del command.commands[name]
    text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="rela-bench"), name="rela-bench")
    return text.partition("\n")[2]
