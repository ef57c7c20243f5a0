"""What a report is made of: plain blocks, which `markdown.py` and `html.py` render. Text is plain, never marked up."""

from dataclasses import dataclass

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
class Figure:
    """Images beside the report: of each its title and its file's name without the ending."""

    images: tuple[tuple[str, str], ...]


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


Block = Heading | Paragraph | Bullets | TableBlock | Figure | Cards


@dataclass(frozen=True)
class Document:
    """A title and blocks."""

    title: str
    blocks: tuple[Block, ...]
