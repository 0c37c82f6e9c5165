"""The map of heads as a still picture (pillow), for places where no page is shown."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from interp.explorer.page import readable
from interp.explorer.payload.payload import shown
from interp.results.figures import colours

CELL, LEFT, TOP = 22, 40, 62
STOPS = {"negative": colours.NEGATIVE, "positive": colours.POSITIVE, "sequential": colours.SIZE}
Number = int | float | None


def png(payload: Mapping[str, Any], *, method: str | None = None) -> bytes:
    """Layers down, heads across, coloured by the first method or by one; + and - say signs that are sure."""
    from PIL import Image, ImageDraw, ImageFont

    data = shown(payload)
    about = next((one for one in data["methods"] if method in (None, one["name"])), None)
    values = _values(data, about)
    wide = [LEFT + max(tower["heads"]) * CELL + 16 for tower in data["towers"]]
    high = max((len(tower["layers"]) for tower in data["towers"]), default=0)
    image = Image.new("RGB", (max(360, sum(wide) + 10), TOP + high * CELL + 30), "#ffffff")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    pen.text((8, 6), _fitting(data["title"]), fill="#000000", font=ImageFont.load_default(14))
    pen.text((8, 26), _fitting(_said(about)), fill="#444444", font=font)
    for n, tower in enumerate(data["towers"]):
        start = 4 + sum(wide[:n])
        pen.text((start + 4, TOP - 18), _fitting(tower["name"]), fill="#000000", font=font)
        for row, layer in enumerate(tower["layers"]):
            pen.text((start + LEFT - 6, TOP + row * CELL + 10), f"L{layer}", fill="#444444", font=font, anchor="rm")
        for head in (one for one in data["heads"] if one["tower"] == n):
            at = (start + LEFT + head["head"] * CELL, TOP + tower["layers"].index(head["layer"]) * CELL)
            _cell(pen, at, *values.get(head["site"], (None, False)), about, font)
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return out.getvalue()


def _values(data: Mapping[str, Any], about: Mapping[str, Any] | None) -> dict[str, tuple[Number, bool]]:
    """By site: the estimate, and whether its sign is sure."""
    if about is None:
        return {}
    table = {
        one["name"]: one.get("values") or [None if c < 0 else one["levels"][c] for c in one["codes"]]
        for one in data["scores"]
    }
    none = [None] * len(table["site"])
    columns = [table.get(name, none) for name in ("site", "method", "estimate", "low", "high")]
    floor = about["floor"] or 0.0
    return {
        site: (value, _sure(value, low, high, floor))
        for site, name, value, low, high in zip(*columns, strict=True)
        if name == about["name"]
    }


def _sure(value: Number, low: Number, high: Number, floor: int | float) -> bool:
    """A sign is written where the interval leaves out 0, and the value is beyond the noise floor."""
    beyond = value is not None and abs(value) > floor
    return beyond and low is not None and high is not None and (low > 0 or high < 0)


def _said(about: Mapping[str, Any] | None) -> str:
    if about is None:
        return "no scores"
    low = -about["bound"] if about["kind"] == "signed" else about["low"]
    return f"{about['name']}, {low:.3g} to {about['bound']:.3g} {about['unit']}"


def _fitting(text: str, most: int = 56) -> str:
    plain = readable(text).encode("latin-1", "replace").decode("latin-1")  # what the built-in font can draw
    return plain if len(plain) <= most else plain[: most - 3] + "..."


def _cell(
    pen: Any, at: tuple[int, int], value: int | float | None, sure: bool, about: Mapping[str, Any] | None, font: Any
) -> None:
    x, y = at
    box = (x, y, x + CELL - 3, y + CELL - 3)
    if value is None or about is None:
        pen.rectangle(box, fill="#ffffff", outline="#999999")
        pen.line((x, y + CELL - 3, x + CELL - 3, y), fill="#999999")
        return
    fill = colour(about, value)
    pen.rectangle(box, fill=fill, outline="#bbbbbb")
    if about["kind"] == "signed" and sure:
        ink = "#000000" if sum(fill) > 330 else "#ffffff"
        pen.text((x + CELL / 2 - 1, y + CELL / 2 - 1), "-" if value < 0 else "+", fill=ink, font=font, anchor="mm")


def colour(about: Mapping[str, Any], value: int | float) -> tuple[int, ...]:
    """Red, green and blue of a value."""
    if about["kind"] == "signed":
        stops, share = STOPS["negative" if value < 0 else "positive"], abs(value) / about["bound"]
    else:
        stops, share = STOPS["sequential"], (value - about["low"]) / (about["bound"] - about["low"])
    at = min(max(share, 0.0), 1.0) * (len(stops) - 1)
    i = min(int(at), len(stops) - 2)
    first, second = (tuple(int(stop[n : n + 2], 16) for n in (1, 3, 5)) for stop in stops[i : i + 2])
    return tuple(round(a + (b - a) * (at - i)) for a, b in zip(first, second, strict=True))
