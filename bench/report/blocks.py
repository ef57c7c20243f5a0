"""What a report is made of: plain blocks, which `render/` turns into files. Text is plain, never marked up."""

from dataclasses import dataclass

from bench.report.figures.chart import View
from bench.report.tables import Table


@dataclass(frozen=True)
class Strong:
    """Emphasised text."""

    text: str


@dataclass(frozen=True)
class Code:
    """A name as a machine reads it."""

    text: str


Text = str | tuple[str | Strong | Code, ...]


@dataclass(frozen=True)
class Heading:
    """The beginning of a part of the report (level 2), or of a part of that (level 3)."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Running text; an empty one is not shown."""

    text: Text


@dataclass(frozen=True)
class Bullets:
    """A list; an empty one is not shown."""

    items: tuple[Text, ...]


@dataclass(frozen=True)
class TableBlock:
    """A table; its id is that of no other in the report."""

    id: str
    table: Table


@dataclass(frozen=True)
class Image:
    """A view as a file beside the report: its title, and the file's name without the ending."""

    title: str
    name: str
    view: View


@dataclass(frozen=True)
class Figure:
    """Views, of which a page shows one at a time, and those of them that are files."""

    id: str
    title: str
    images: tuple[Image, ...]
    views: tuple[View, ...] = ()


@dataclass(frozen=True)
class Details:
    """A table that a page folds away under its title, and that Markdown, which cannot sort, does not have."""

    title: str
    table: TableBlock


Block = Heading | Paragraph | Bullets | TableBlock | Figure | Details


@dataclass(frozen=True)
class Document:
    """A title and blocks."""

    title: str
    blocks: tuple[Block, ...]
