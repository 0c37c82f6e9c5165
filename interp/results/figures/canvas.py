"""A small drawing surface that writes the same picture as SVG and as PNG, with no plotting library.

Rectangles, lines, dots and text in pixels from the top left corner. Text in an SVG is escaped; a title and a sentence
say to a screen reader what is drawn. Limits: one typeface; PNG text is what Pillow's own face can write.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from io import BytesIO
from typing import Any, Literal

Anchor = Literal["start", "middle", "end"]
Number = float | int
Point = tuple[Number, Number]
PILLOW = {"start": "lm", "middle": "mm", "end": "rm"}
SCALE = 2
"""Pixels of the PNG per unit."""


@dataclass
class Canvas:
    """What is drawn, in order."""

    width: int
    height: int
    title: str
    said: str = ""
    marks: list[tuple[str, Callable[[Any], None]]] = field(default_factory=list)

    def rect(self, x: Number, y: Number, w: Number, h: Number, *, fill: str, line: str | None = None) -> None:
        """A filled rectangle, with an outline if asked for."""
        edge = f' stroke="{line}"' if line else ""
        box = tuple(round(v * SCALE) for v in (x, y, x + w, y + h))
        self.marks.append((
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" fill="{fill}"{edge}/>',
            lambda pen: pen.rectangle(box, fill=fill, outline=line, width=SCALE if line else 0),
        ))  # fmt: skip

    def line(self, points: Sequence[Point], *, colour: str = "#222222", width: Number = 1.5, dash: str = "") -> None:
        """A line through points; dashes are drawn in the SVG and as thinner lines in the PNG."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        ends = [(round(x * SCALE), round(y * SCALE)) for x, y in points]
        thick = max(1, round(width * SCALE * (0.5 if dash else 1)))
        self.marks.append((
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dashes}/>',
            lambda pen: pen.line(ends, fill=colour, width=thick),
        ))  # fmt: skip

    def dot(self, x: Number, y: Number, r: Number = 3, *, fill: str = "#222222", line: str = "#222222") -> None:
        """A dot; white inside for the second of two kinds."""
        box = tuple(round(v * SCALE) for v in (x - r, y - r, x + r, y + r))
        self.marks.append((
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" fill="{fill}" stroke="{line}"/>',
            lambda pen: pen.ellipse(box, fill=fill, outline=line),
        ))  # fmt: skip

    def image(self, x: Number, y: Number, w: Number, h: Number, pixels: Any) -> None:
        """A picture [row, column, 3] in 0 to 255, stretched to the box."""
        from PIL import Image

        small, sink = Image.fromarray(pixels), BytesIO()
        small.save(sink, format="PNG")
        data = b64encode(sink.getvalue()).decode()
        size = round(w * SCALE), round(h * SCALE)
        at = round(x * SCALE), round(y * SCALE)
        self.marks.append((
            f'<image x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" preserveAspectRatio="none"'
            f' href="data:image/png;base64,{data}"/>',
            lambda pen: pen.sheet.paste(small.resize(size), at),
        ))  # fmt: skip

    def upright(self, x: Number, y: Number, words: str, *, size: int = 11, fill: str = "#111111") -> None:
        """One line of text that begins at y and is read upwards, its middle at x."""
        self.marks.append((
            f'<text transform="translate({x:.1f} {y:.1f}) rotate(-90)" font-size="{size}"'
            f' dominant-baseline="central" fill="{fill}">{escape(words)}</text>',
            lambda pen: _turned(pen, (x * SCALE, y * SCALE), words, size, fill),
        ))  # fmt: skip

    def text(
        self, x: Number, y: Number, words: str, *, size: int = 11, anchor: Anchor = "start", fill: str = "#111111"
    ) -> None:
        """One line of text, its middle at y."""
        self.marks.append((
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" dominant-baseline="central"'
            f' fill="{fill}">{escape(words)}</text>',
            lambda pen: pen.text((x * SCALE, y * SCALE), words, fill=fill, anchor=PILLOW[anchor], font=_face(size)),
        ))  # fmt: skip

    def svg(self) -> str:
        """The picture as SVG."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img"'
            f' font-family="sans-serif"><title>{escape(self.title)}</title><desc>{escape(self.said)}</desc>'
            f'<rect width="{self.width}" height="{self.height}" fill="#ffffff"/>'
            + "".join(mark for mark, _ in self.marks)
            + "</svg>\n"
        )

    def png(self) -> bytes:
        """The picture as PNG."""
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (self.width * SCALE, self.height * SCALE), "#ffffff")
        pen: Any = ImageDraw.Draw(image)
        pen.sheet = image  # what pictures are put on
        for _, draw in self.marks:
            draw(pen)
        sink = BytesIO()
        image.save(sink, format="PNG")
        return sink.getvalue()


def _turned(pen: Any, start: Point, words: str, size: int, fill: str) -> None:
    from PIL import Image, ImageDraw

    width = max(1, round(_face(size).getlength(words))) + 2
    strip = Image.new("L", (width, round(1.5 * size * SCALE)))
    ImageDraw.Draw(strip).text((1, strip.height / 2), words, fill=255, anchor="lm", font=_face(size))
    mask = strip.rotate(90, expand=True)
    pen.bitmap((round(start[0] - mask.width / 2), round(start[1]) - mask.height), mask, fill=fill)


@cache
def _face(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size * SCALE)
