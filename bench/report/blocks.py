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
class Verdict:
    """What became of a claim on some data, in the costs named; `numbers` are what it rests on."""

    dataset: str
    answer: str
    costs: str
    numbers: str


@dataclass(frozen=True)
class Card:
    """A claim, in words, and its verdicts."""

    title: str
    text: str
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class Cards:
    """The claims; Markdown, which has the table of verdicts below, gives the words alone."""

    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Details:
    """A table that a page folds away under its title. Markdown, which cannot sort, has it when it is `brief`."""

    title: str
    table: TableBlock
    brief: bool = False


Block = Heading | Paragraph | Bullets | TableBlock | Figure | Cards | Details


@dataclass(frozen=True)
class Document:
    """A title and blocks."""

    title: str
    blocks: tuple[Block, ...]
