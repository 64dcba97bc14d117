"""A small SVG picture in the style of Flowerbed's diagrams: boxes, texts, arrows, light and dark.

`dev/diagrams.py` draws with it. A text that leaves its box, or lies on another text, is an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"

STYLE = """\
    .page { fill: #ffffff; }
    .container { fill: #f6f7f9; stroke: #9aa3af; }
    .behind { fill: #eceef1; stroke: #b8bfc9; }
    .flower { fill: #fff1d6; stroke: #c27803; }
    .bed { fill: #e6e4fb; stroke: #5b50c8; }
    .flare { fill: #dff3e0; stroke: #3d8b40; }
    .key { fill: #fde4e1; stroke: #c2412d; }
    .zone { fill: none; stroke: #9aa3af; stroke-dasharray: 6 4; }
    .ink { fill: #1b1f24; }
    .soft { fill: #57606a; }
    .way { stroke: #57606a; fill: none; }
    .tip { fill: #57606a; }
    .tls { stroke: #3d8b40; fill: none; }
    .tls-tip, .tls-ink { fill: #2f7a33; }
    @media (prefers-color-scheme: dark) {
      .page { fill: #0d1117; }
      .container { fill: #161b22; stroke: #6e7681; }
      .behind { fill: #11161d; stroke: #484f58; }
      .flower { fill: #3a2b0a; stroke: #e3a33a; }
      .bed { fill: #272350; stroke: #9d94f5; }
      .flare { fill: #12331a; stroke: #56b35c; }
      .key { fill: #431a15; stroke: #f07f6d; }
      .zone { stroke: #6e7681; }
      .ink { fill: #e6edf3; }
      .soft, .tip { fill: #9da7b1; }
      .way { stroke: #9da7b1; }
      .tls { stroke: #56b35c; }
      .tls-tip, .tls-ink { fill: #6fce75; }
    }
    text { text-anchor: middle; }
    .left { text-anchor: start; }
    .right { text-anchor: end; }
    .name { font-size: 16px; font-weight: 600; }
    .note { font-size: 14px; }
    .box { stroke-width: 1.6; }
    .dashed { stroke-dasharray: 5 4; }
"""

SIZES = {"name": (16, 0.61), "note": (14, 0.56)}
"""By kind of text, its height in pixels, and a character's mean width as a part of that."""

LINE = 19
"""Pixels from one line of a text to the next."""

TIP = 11
"""Pixels of an arrow's tip."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A rectangle of the picture."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> Point:
        """The middle of its left side."""
        return self.x, self.y + self.height / 2

    @property
    def right(self) -> Point:
        """The middle of its right side."""
        return self.x + self.width, self.y + self.height / 2

    @property
    def top(self) -> Point:
        """The middle of its upper side."""
        return self.x + self.width / 2, self.y

    @property
    def bottom(self) -> Point:
        """The middle of its lower side."""
        return self.x + self.width / 2, self.y + self.height

    def meets(self, other: Box) -> bool:
        """Whether the two have a point in common."""
        across = self.x < other.x + other.width and other.x < self.x + self.width
        return across and self.y < other.y + other.height and other.y < self.y + self.height


@dataclass
class Picture:
    """One diagram. It is drawn in the order of the calls."""

    title: str
    description: str
    width: int
    height: int
    _parts: list[str] = field(default_factory=list)
    _texts: list[tuple[Box, str]] = field(default_factory=list)

    def box(self, kind: str, x: float, y: float, width: float, height: float, *lines: str) -> Box:
        """Draw a box of a `kind` (a class of `STYLE`). Its first line is a name, the others are notes."""
        round_by = 12 if kind in ("container", "behind") else 8
        self._parts.append(
            f'<rect class="{kind} box" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" '
            f'rx="{round_by}"/>'
        )
        box = Box(x, y, width, height)
        if lines:
            first = y + height / 2 - LINE * (len(lines) - 1) / 2 + 5
            self.text(x + width / 2, first, lines[0], kind="name", within=box)
            self.text(x + width / 2, first + LINE, *lines[1:], within=box)
        return box

    def text(
        self,
        x: float,
        y: float,
        *lines: str,
        kind: str = "note",
        colour: str = "",
        align: str = "",
        within: Box | None = None,
    ) -> None:
        """Write lines, the first with its foot at `y`.

        Args:
            x: their middle, or their end where they are aligned.
            y: the foot of the first.
            lines: the text.
            kind: `name` or `note`.
            colour: a class of `STYLE`. Without one, names are dark and notes are not.
            align: `left` or `right`. Without one, the middle.
            within: the box that holds it. Without one, the picture does.
        """
        colour = colour or ("ink" if kind == "name" else "soft")
        for number, line in enumerate(lines):
            foot = y + number * LINE
            self._check(line, kind, x, foot, align, within or Box(0, 0, self.width, self.height))
            classes = f"{colour} {kind} {align}".strip()
            self._parts.append(f'<text class="{classes}" x="{x:g}" y="{foot:g}">{escape(line)}</text>')

    def _check(self, line: str, kind: str, x: float, foot: float, align: str, within: Box) -> None:
        size, share = SIZES[kind]
        width = len(line) * size * share
        start = {"left": x, "right": x - width}.get(align, x - width / 2)
        place = Box(start, foot - 0.75 * size, width, 0.9 * size)
        if start < within.x or start + width > within.x + within.width:
            raise ValueError(f"{self.title}: {line!r} leaves its box")
        for other, written in self._texts:
            if place.meets(other):
                raise ValueError(f"{self.title}: {line!r} lies on {written!r}")
        self._texts.append((place, line))

    def arrow(
        self, *points: Point, both: bool = False, dashed: bool = False, tls: bool = False, gap: float = 4
    ) -> None:
        """Draw a line through `points`, with a tip at its end. With `both` it has one at its beginning too.

        Args: points: of a line with level or upright parts.
            both: whether it goes both ways.
            dashed: whether it is drawn so.
            tls: whether it is a line of mutual TLS: thick and green.
            gap: pixels that stay free between a tip and its point.
        """
        ends = list(points)
        length = TIP * (1.7 if tls else 1)
        tips = [_tip(points[-2], points[-1], gap, length)]
        ends[-1] = _before(points[-2], points[-1], gap + length - 1)
        if both:
            tips.append(_tip(points[1], points[0], gap, length))
            ends[0] = _before(points[1], points[0], gap + length - 1)
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in ends)
        classes = ("tls" if tls else "way") + (" dashed" if dashed else "")
        self._parts.append(f'<path class="{classes}" d="{path}" stroke-width="{5 if tls else 1.8}"/>')
        name = "tls-tip" if tls else "tip"
        self._parts += [f'<path class="{name}" d="{tip}"/>' for tip in tips]

    def legend(self, y: float, *entries: tuple[str, str, float]) -> None:
        """Say what the colours mean: each entry is a kind, its meaning, and where it begins."""
        for kind, meaning, x in entries:
            self.box(kind, x, y, 22, 22)
            self.text(x + 30, y + 16, meaning, align="left", colour="ink")

    def svg(self) -> str:
        """The file's content."""
        body = "\n".join(f"  {part}" for part in self._parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-labelledby="title desc" font-family="{FONT}">\n'
            f'  <title id="title">{escape(self.title)}</title>\n'
            f'  <desc id="desc">{escape(self.description)}</desc>\n'
            f"  <style>\n{STYLE}  </style>\n"
            f'  <rect class="page" width="{self.width}" height="{self.height}" rx="10"/>\n'
            f"{body}\n</svg>\n"
        )


def _before(start: Point, end: Point, by: float) -> Point:
    """The point that lies `by` pixels before the end of a level or upright line."""
    (x, y), (to_x, to_y) = start, end
    if x == to_x:
        return to_x, to_y - by if to_y > y else to_y + by
    if y == to_y:
        return (to_x - by if to_x > x else to_x + by), to_y
    raise ValueError(f"a line from {start} to {end} is neither level nor upright")


def _tip(start: Point, end: Point, gap: float, length: float) -> str:
    """The path of a tip at the end of a line."""
    x, y = _before(start, end, gap)
    back_x, back_y = _before(start, end, gap + length)
    half = length / 2
    if x == back_x:
        return f"M{x:g} {y:g}L{x - half:g} {back_y:g}H{x + half:g}Z"
    return f"M{x:g} {y:g}L{back_x:g} {y - half:g}V{y + half:g}Z"
