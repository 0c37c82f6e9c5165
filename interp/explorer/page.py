"""One file with everything in it: what it may load is nothing, and its policy says so.

The policy names the script and the style by their hashes, so nothing that a token or a file name smuggles in can run;
pictures come as data. The same payload gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import unicodedata
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from interp.explorer.payload.payload import shown
from interp.explorer.payload.plain import ExplorerError
from interp.results.figures import colours

PARTS = (
    "theme",
    "base",
    "state",
    "tips",
    "colour",
    "fit",
    "export",
    "menu",
    "find",
    "examples",
    "map",
    "scatter",
    "ranking",
    "attention",
    "image",
    "tokens",
    "lines",
    "looks",
    "card",
    "thumbs",
    "compare",
    "keys",
    "graph",
    "circuit",
    "curves",
    "reach",
    "main",
)
STYLES = ("style", "looking", "pictures")
LIMIT = 10_000_000
"""Bytes of a page: more than this no browser opens with pleasure."""
SLOT = re.compile("@(POLICY|STYLE|SCRIPT|DATA|TITLE|FINDING)@")
KEPT = "\u200d"
"""Joins emoji; shows nothing and turns nothing around."""


def page(payload: Mapping[str, Any], *, limit: int = LIMIT) -> str:
    """The page as text; `interp/explorer/payload/payload.py` says what it takes."""
    data = shown(payload)
    style, script = "\n".join(_part(f"{name}.css") for name in STYLES), _script()
    values = {
        "POLICY": _policy(style, script),
        "STYLE": style,
        "SCRIPT": script,
        "DATA": _inside_script(data),
        "TITLE": html.escape(readable(data["title"])),
        "FINDING": html.escape(readable(str(payload.get("finding") or ""))),
    }
    text = SLOT.sub(lambda found: values[found[1]], _part("template.html"))
    if len(text) > limit:
        raise ExplorerError(
            f"the page would have {len(text):,} bytes, more than {limit:,}: give fewer examples or heads with patterns,"
            " sample rows, or give the largest keys only (indices=)."
        )
    return text


def readable(text: str) -> str:
    """Text with a code point in the place of every character that cannot be seen or turns its surroundings around."""
    return "".join(
        f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c != KEPT else c
        for c in text
    )


def _inside_script(data: Any) -> str:
    """JSON that cannot end the element that it is in."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _part(name: str) -> str:
    return (files("interp.explorer") / name).read_text(encoding="utf-8")


@cache
def _script() -> str:
    whole = "\n".join(_part(f"{name}.js") for name in PARTS)
    table = {"BLUE": colours.NEGATIVE, "ORANGE": colours.POSITIVE, "CIVIDIS": colours.SIZE, "INKS": colours.LINES}
    said = "".join(f"const {name} = {json.dumps(stops, separators=(',', ':'))};\n" for name, stops in table.items())
    return f'(() => {{\n"use strict";\n{said}{whole}}})();\n'


def _policy(style: str, script: str) -> str:
    """Nothing may be loaded; this script and this style may run."""

    def hashed(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    return (
        f"default-src 'none'; script-src {hashed(script)}; style-src {hashed(style)}; img-src data: blob:;"
        " base-uri 'none'; form-action 'none'"
    )
