"""matplotlib's SVG made part of a page: values in words, colours of the page, no style that its policy forbids."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence

# Okabe and Ito's colours, which colour-blind people tell apart, without the yellow that is too pale for lines.
COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY, PALE, PAPER = "#666666", "#e4e4e4", "#ffffff"
# What they are on the page, which has them for light and dark. Black text and lines have the page's ink, as matplotlib
# leaves out a fill that is black.
SHADES = {colour: f"var(--c{index})" for index, colour in enumerate(COLOURS)}
SHADES |= {GREY: "var(--quiet)", PALE: "var(--rule)", PAPER: "var(--paper)"}
LEFT_OUT = {"metadata", "style", "title", "clipPath"}  # nothing is drawn beyond the axes
USELESS = {"clip-path", "font-family", "stroke-dashoffset", "stroke-linecap", "stroke-linejoin"}
USUAL_SIZE = "10.5"  # of text, which the page's style has
_SIZE = re.compile(r"([\d.]+)px")
_NUMBER = re.compile(r"-?\d+\.\d+")


def page_svg(
    raw: bytes, prefix: str, kind: str, titles: Mapping[str, Sequence[str]] | None = None, label: str | None = None
) -> str:
    """Return matplotlib's SVG as part of a page.

    Args:
        raw: what matplotlib wrote, with its text as text.
        prefix: what its ids begin with, which no other SVG of the page has.
        kind: its class.
        titles: for each line of markers, by its id, what each marker is in words.
        label: what it is in words; one without is left to those who see.
    """
    root = ET.fromstring(raw)
    for element in root.iter():
        element[:] = [child for child in element if child.tag.rpartition("}")[2] not in LEFT_OUT]
        element.tag = element.tag.rpartition("}")[2]
        element.tail = None
        element.text = element.text if element.tag == "text" else None
        _restyle(element)
    for group in [*root.iter("g")]:
        texts = (titles or {}).get(group.get("id", ""), ())
        for marker, text in zip(group.iter("use"), texts, strict=bool(texts)):
            ET.SubElement(marker, "title").text = text
    _rename(root, prefix)
    for group in [*root.iter("g")]:
        _share(group)
    _flatten(root)
    root.attrib = {"viewBox": root.attrib["viewBox"], "class": kind}
    root.attrib |= {"role": "img", "aria-label": label} if label else {"aria-hidden": "true"}
    return ET.tostring(root, encoding="unicode")


def _restyle(element: ET.Element) -> None:
    """Turn a style into attributes, in the page's colours, and shorten numbers: nobody sees a tenth of a point."""
    there = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    rules = (rule.partition(":") for rule in there.pop("style", "").split(";"))
    there |= {name.strip(): SHADES.get(value.strip(), value.strip()) for name, _, value in rules if name.strip()}
    if font := there.pop("font", "") + there.pop("font-size", ""):
        size = _SIZE.search(font)[1]  # type: ignore[index]
        there |= {"font-size": size} if size != USUAL_SIZE else {}
    for name in {"d", "x", "y", "transform"} & there.keys():
        there[name] = _NUMBER.sub(lambda match: f"{float(match[0]):.1f}".removesuffix(".0"), there[name])
    if "d" in there:
        there["d"] = re.sub(r"\s*([A-Za-z])\s*", r"\1", there["d"].strip())
    element.attrib = {
        name: value for name, value in there.items() if name not in USELESS and not value.startswith("rotate(-0 ")
    }


def _rename(root: ET.Element, prefix: str) -> None:
    """Give ids with a prefix to the shapes of markers, each of which is there once, and none to the rest.

    A shape has no style of its own: that of its marker does.
    """
    names: dict[str, str] = {}  # of shapes, by their path
    by: dict[str, str] = {}  # of shapes, by the id that matplotlib gave them
    for shapes in root.iter("defs"):
        for shape in [*shapes]:
            path, new = shape.attrib["d"], shape.attrib["d"] not in names
            by[f"#{shape.attrib['id']}"] = names.setdefault(path, f"{prefix}{len(names)}")
            shape.attrib = {"d": path, "name": names[path]}
            if not new:
                shapes.remove(shape)
    for element in root.iter():
        element.attrib.pop("id", None)
        element.attrib |= {"id": element.attrib.pop("name")} if "name" in element.attrib else {}
        element.attrib |= {"href": f"#{by[element.attrib['href']]}"} if element.tag == "use" else {}


def _flatten(element: ET.Element) -> None:
    """Take the groups away that hold one thing and say nothing of it."""
    for index, child in enumerate(element):
        _flatten(child)
        if child.tag == "g" and not child.attrib and len(child) == 1:
            element[index] = child[0]


def _share(group: ET.Element) -> None:
    """Say once for a group of markers what all of them have in common."""
    if any(child.tag != "use" for child in group) or len(group) < 2:
        return
    common = set.intersection(*({*child.attrib.items()} for child in group))
    group.attrib |= dict(sorted((name, value) for name, value in common if name not in {"href", "x", "y"}))
    for child in group:
        child.attrib = {name: value for name, value in child.attrib.items() if name not in group.attrib}
