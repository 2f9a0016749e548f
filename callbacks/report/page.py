"""The parts of a report page, and the one file that they become.

The template escapes every text, since samples of a model may hold markup. Images are data URIs; a
content security policy forbids the page to load anything, and to run any script.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Args:
        text: Content; the alternative text of an image.
        kind: "number" (to the right), "text" (wrapped) or "short" (one line).
        image: Data URI of an image that stands in place of the text.
        hint: Text that a pointer on the cell shows.
    """

    text: str
    kind: str = "text"
    image: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table: cells, or the headline of a group of rows."""

    cells: Sequence[Cell] = ()
    group: str = ""


@dataclass(frozen=True)
class Column:
    """The head of a column; numbers stand to the right."""

    name: str
    number: bool = False


@dataclass(frozen=True)
class Molecule:
    """A drawing of a molecule with a caption; `text` is its SMILES string."""

    image: str
    text: str
    caption: str


@dataclass(frozen=True)
class Block:
    """One part of a section: whichever of its members are given are shown."""

    title: str = ""
    columns: Sequence[Column] = ()
    rows: Sequence[Row] = ()
    image: str = ""
    molecules: Sequence[Molecule] = ()
    text: str = ""
    code: str = ""


@dataclass(frozen=True)
class Section:
    """A headline with blocks below it; a folded one is opened by the reader."""

    title: str
    blocks: Sequence[Block]
    note: str = ""
    folded: bool = False


@dataclass
class Page:
    """A report.

    Args:
        title: Headline.
        subtitle: Line below it.
        badge: Status in one word or two.
        badge_kind: CSS class of the badge; "finished" and "held" are good ones.
        facts: Names and values at the top.
        sections: The page below, of which empty ones are left out.
    """

    title: str
    subtitle: str = ""
    badge: str = ""
    badge_kind: str = ""
    facts: list[tuple[str, str]] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)

    def add(
        self, title: str, blocks: Sequence[Block], note: str = "", folded: bool = False
    ) -> None:
        """Append a section if there is anything to show in it."""
        if blocks:
            self.sections.append(Section(title, blocks, note, folded))

    def html(self) -> str:
        """Return the page as one self-contained HTML file."""
        return _template().render(page=self)


def data_uri(path: Path) -> str:
    """Return the content of a PNG or SVG file as a data URI."""
    return image_uri(path.read_bytes(), _TYPES[path.suffix])


def image_uri(content: bytes, kind: str) -> str:
    """Return an image as a data URI.

    Args:
        content: Bytes of the image file.
        kind: Media type, such as "image/png".
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@cache
def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
