"""What a report is made of: plain blocks, which `markdown.py` and `html.py` render. Text is plain, never marked up."""

from dataclasses import dataclass
from typing import Literal

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
class Mark:
    """A point of a chart with its deviation, and what it is in words; a small one is a single seed."""

    x: float
    y: float
    text: str
    sd: float | None = None
    small: bool = False


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    `style` chooses colour, marker and dashes, the same in all charts of a report. Kinds: "cells" with bars of one
    deviation, a "curve" with a band of one, "published" points without a line, the "front" of the best of all, and a
    "reference", which is a level alone.
    """

    name: str
    style: int
    marks: tuple[Mark, ...]
    kind: Literal["cells", "curve", "published", "front", "reference"] = "cells"
    filled: bool = True
    level: Mark | None = None  # a line across the chart


@dataclass(frozen=True)
class Chart:
    """Series over one axis of x."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log: bool = False
    from_zero: bool = True  # of x, where it is not logarithmic


@dataclass(frozen=True)
class View:
    """Charts that are looked at together, one for each dataset."""

    name: str
    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class Figure:
    """Charts, of which one view is seen at a time, and images of some of them beside the report.

    Of an image: its title and its file's name without the ending.
    """

    id: str
    title: str
    images: tuple[tuple[str, str], ...]
    views: tuple[View, ...]


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
