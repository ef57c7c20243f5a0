"""A report as Markdown."""

import re
from collections.abc import Iterable

from bench.report.blocks import (
    Block,
    Bullets,
    Code,
    Details,
    Document,
    Figure,
    Heading,
    Paragraph,
    Strong,
    TableBlock,
    Text,
)
from bench.report.tables import Entry, Table, one_line


def markdown_document(document: Document) -> str:
    """Return the report."""
    return f"# {escape_markdown(document.title)}\n\n{markdown_blocks(document.blocks)}\n"


def markdown_blocks(blocks: Iterable[Block]) -> str:
    """Return a part of the report."""
    return "\n\n".join(filter(None, map(_block, blocks)))


def to_markdown(table: Table) -> str:
    """Return a table in GitHub's Markdown."""
    lines = [
        [escape_markdown(text) for text in table.head],
        ["---" if column < table.names else "---:" for column in range(len(table.head))],
        *([_entry(entry) for entry in row] for row in table.rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape_markdown(text: str, limit: int | None = 400) -> str:
    """Return text that Markdown, with the HTML in it, shows as it is, cut where it is longer than the limit."""
    text = re.sub(r"([\\`*_{}\[\]|~$#])", r"\\\1", one_line(text, limit))
    text = re.sub(r"^(\d*)([-+=.)])(?=\s|$|[-=]+$)", r"\1\\\2", text)  # what would begin a list or rule off a title
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {escape_markdown(text)}"
        case Paragraph(text):
            return _inline(text)
        case Bullets(items):
            return "\n".join(f"- {_inline(item)}" for item in items)
        case TableBlock(_, table):
            return to_markdown(table)
        case Figure(images=images):
            return "\n\n".join(f"![{escape_markdown(image.title)}]({image.name}.png)" for image in images)
        case Details():
            return ""


def _inline(text: Text) -> str:
    return "".join(map(_piece, (text,) if isinstance(text, str) else text))


def _piece(piece: str | Strong | Code) -> str:
    match piece:
        case Strong(text):
            return f"**{escape_markdown(text)}**"
        case Code(text):
            return "`" + one_line(text).replace("`", "'") + "`"
        case text:
            before, after = (" " if there else "" for there in (text.startswith(" "), text.endswith(" ")))
            return f"{before}{escape_markdown(text, None)}{after}"


def _entry(entry: Entry) -> str:
    text = escape_markdown(entry.text)
    text = f"<u>{text}</u>" if entry.underline else text
    text = f"**{text}**" if entry.bold else text
    return f"{text} {escape_markdown(entry.note)}".rstrip()
