"""Attention patterns and pictures in few bytes: one byte a weight, on a scale of its own head.

A head that looks everywhere has weights of 1 / tokens, which a scale that it shares with a head that looks at one token
would round to nothing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from interp.explorer.payload.plain import ExplorerError, only
from interp.explorer.payload.scores import Places

PNG = b"\x89PNG\r\n\x1a\n"
DATA = "data:image/png;base64,"


def array(value: Any, where: str) -> np.ndarray:
    """A tensor or nested list as numpy."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().float().numpy() if value.is_floating_point() else value.detach().cpu().numpy()
    found = np.asarray(value)
    if found.dtype == object:
        raise ExplorerError(f"{where} is not an array of numbers.")
    return found


def block(given: Mapping[str, Any], n: int, tokens: Sequence[int], places: Places) -> dict[str, Any]:
    """One block of patterns; `tokens` counts the tokens of each example."""
    where = f"patterns[{n}]"
    example = given.get("example", 0)
    if example not in range(len(tokens)):
        raise ExplorerError(f"{where}.example is {example!r}, and there are {len(tokens)} examples.")
    sites = [places.need(site, f"{where}.sites") for site in given["sites"]]
    weights = array(given["weights"], f"{where}.weights")
    rows, keys = (_positions(given.get(name), tokens[example], f"{where}.{name}") for name in ("rows", "keys"))
    indices = given.get("indices")
    wide = len(keys) if keys is not None else tokens[example]
    if indices is not None:
        indices = _indices(indices, weights, tokens[example], where)
        keys, wide = None, weights.shape[-1]
    wanted = (len(sites), tokens[example] if rows is None else len(rows), wide)
    if weights.shape != wanted:
        raise ExplorerError(f"{where}.weights is {list(weights.shape)}, expected [head, row, key] = {list(wanted)}.")
    scale, tops, packed = quantised(weights, given.get("scale"), where)
    return {
        "example": example, "sites": sites, "rows": rows, "keys": keys, "width": wide, "scale": scale,
        "tops": tops,
        "bytes": base64.b64encode(packed.tobytes()).decode(),
        "indices": None if indices is None else base64.b64encode(indices.tobytes()).decode(),
    }  # fmt: skip


def rollout(given: Mapping[str, Any], tokens: int, where: str) -> dict[str, Any]:
    """Attention rolled out over all layers, for some query rows, in bytes as patterns are."""
    only(given, {"rows", "weights"}, where)
    rows, weights = _positions(given["rows"], tokens, f"{where}.rows"), array(given["weights"], f"{where}.weights")
    if weights.shape != (len(rows or ()), tokens):
        raise ExplorerError(
            f"{where}.weights is {list(weights.shape)}, expected [row, key] = {[len(rows or ()), tokens]}."
        )
    _, tops, packed = quantised(weights[:, None], None, where)
    return {"rows": rows, "tops": tops, "bytes": base64.b64encode(packed.tobytes()).decode()}


def quantised(
    weights: np.ndarray, scale: int | float | None, where: str
) -> tuple[float, list[float] | None, np.ndarray]:
    """The largest weight of the block, the largest of each head, and bytes: weight ~ byte * top of its head / 255. On
    one scale (None for the heads) where the weights are bytes already or the scale is given."""
    if weights.dtype == np.uint8:
        if scale is None:
            raise ExplorerError(f"{where}: weights in bytes need scale=, the weight that 255 means.")
        return float(scale), None, weights
    if not np.isfinite(weights).all() or weights.min(initial=0) < 0 or weights.max(initial=0) > 1 + 1e-3:
        raise ExplorerError(f"{where}.weights must be attention weights, between 0 and 1 and finite.")
    if scale is not None:
        return float(scale), None, _bytes(weights, float(scale))
    largest = [float(f"{top:.6g}") for top in weights.max((1, 2), initial=0).tolist()]
    tops = [top or 1.0 for top in largest]
    return max(largest, default=0.0) or 1.0, tops, _bytes(weights, np.array(tops)[:, None, None])


def _bytes(weights: np.ndarray, top: Any) -> np.ndarray:
    return np.clip(np.rint(weights.astype(np.float64) * (255 / top)), 0, 255).astype(np.uint8)


def _positions(given: Any, tokens: int, where: str) -> list[int] | None:
    if given is None:
        return None
    found = [int(i) for i in given]
    if wrong := [i for i in found if not 0 <= i < tokens]:
        raise ExplorerError(f"{where} names position {wrong[0]} of {tokens} tokens.")
    return found


def _indices(given: Any, weights: np.ndarray, tokens: int, where: str) -> np.ndarray:
    found = array(given, f"{where}.indices")
    if found.shape != weights.shape or found.min(initial=0) < 0 or found.max(initial=0) >= tokens:
        raise ExplorerError(f"{where}.indices must be as weights, and name keys from 0 to {tokens - 1}.")
    return found.astype("<u4")


def image(given: Mapping[str, Any], n: int, tokens: Sequence[int]) -> dict[str, Any]:
    """A picture with the grid of its patches."""
    where = f"images[{n}]"
    rows, columns = (int(side) for side in given["grid"])
    positions = list(given["positions"])
    example = given.get("example", 0)
    if example not in range(len(tokens)):
        raise ExplorerError(f"{where}.example is {example!r}, and there are {len(tokens)} examples.")
    if len(positions) != rows * columns:
        raise ExplorerError(f"{where} has {len(positions)} positions for {rows} x {columns} patches.")
    whole = _positions([p for p in positions if p is not None], tokens[example], f"{where}.positions")
    taken = iter(whole or ())
    data = png(given["png"], where)
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    return {
        "name": str(given.get("name", f"image {n}")), "example": example, "grid": [rows, columns],
        "positions": [None if p is None else next(taken) for p in positions],
        "src": encoded(data), "width": width, "height": height,
        **_lines(given, (rows, columns), (height, width), where),
    }  # fmt: skip


def _lines(
    given: Mapping[str, Any], grid: tuple[int, int], size: tuple[int, int], where: str
) -> dict[str, list[float] | list[list[float]]]:
    """The lines between cells and those between tiles, in pixels; evenly spaced where none are given."""
    found: dict[str, Any] = {}
    for name, cells, side in (("down", grid[0], size[0]), ("across", grid[1], size[1])):
        even = (side * n / cells for n in range(cells + 1))
        lines: list[float] = [float(line) for line in given.get(name) or even]
        if len(lines) != cells + 1 or lines != sorted(lines) or not -1 <= lines[0] <= lines[-1] <= side + 1:
            raise ExplorerError(f"{where}.{name} must be {cells + 1} rising pixels from 0 to {side}, got {lines}.")
        found[name] = lines
    between: Sequence[Sequence[float]] = given.get("borders") or ([], [])
    borders = [[float(line) for line in part] for part in between]
    if len(borders) != 2:
        raise ExplorerError(f"{where}.borders are two lists of pixels: lines across, lines down.")
    return {**found, "borders": borders}


def encoded(data: bytes) -> str:
    """A PNG as an address that holds it."""
    return DATA + base64.b64encode(data).decode()


def png(given: Any, where: str) -> bytes:
    """A picture as a PNG, encoded anew unless it is one already."""
    if isinstance(given, str):
        if not given.startswith(DATA):
            raise ExplorerError(f"{where}.png is a PNG's bytes, a {DATA}... address, a picture or an array.")
        given = base64.b64decode(given.removeprefix(DATA), validate=True)
    if isinstance(given, bytes):
        if not given.startswith(PNG) or len(given) < 24:
            raise ExplorerError(f"{where}.png is no PNG: it begins with {given[:8]!r}.")
        return given
    from PIL import Image

    if not isinstance(given, Image.Image):
        pixels = array(given, f"{where}.png")
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
            raise ExplorerError(f"{where}.png as an array is uint8 [row, column, 3], got {pixels.dtype}.")
        given = Image.fromarray(pixels)
    out = io.BytesIO()
    given.convert("RGB").save(out, format="PNG", optimize=True)
    return out.getvalue()
