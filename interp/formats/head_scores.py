"""Published head scores: `head_score/*.json` of Retrieval_Head (Wu et al., arXiv 2404.15574) and HeadKV, which are
`{"layer-head": [score, ...]}` with a score a test, and QRHead's (Zhang et al., arXiv 2506.09944)
`[["layer-head", score], ...]`, which are means.

Only tests the model passed are in the former, and not which: lengths, depths and the way of counting are not known.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from interp.hooks.head_names import head_name
from interp.reading import Entry, FormatError, content, lines
from interp.results.retrieval import Mode, RetrievalHeads


def head_scores(path: str | Path) -> RetrievalHeads:
    """The scores of every head, as `interp.retrieval_heads` and `interp.long.query_heads` return them."""
    file, text = content(path)
    if text.lstrip().startswith("["):
        return _made(_ranked(file, text), "query")
    entry = lines(path)[0]
    rows = {name: _scores(entry, name) for name in entry.value}
    if not rows or len({len(row) for row in rows.values()}) != 1 or not all(rows.values()):
        raise entry.fail("expected the same number of scores for every head, at least one")
    return _made(Entry(entry.file, entry.line, rows), None)


def _made(entry: Entry, mode: Mode | None) -> RetrievalHeads:
    sites = tuple(head_name(None, *map(int, name.split("-"))) for name in entry.value)
    scores = torch.tensor(list(entry.value.values()), dtype=torch.double)
    tests = scores.shape[1]
    recall = torch.full((tests,), torch.nan, dtype=torch.double)
    kept = torch.ones(tests, dtype=torch.bool)
    return RetrievalHeads(sites, scores, kept, recall, mode, (), {"file": str(entry.file)})


def _ranked(file: Path, text: str) -> Entry:
    """QRHead's list as one score a head, in the order of layers."""
    try:
        pairs = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file}, line {getattr(error, 'lineno', 1)}: not JSON ({error})") from None
    entry = Entry(file, 1, {})
    if not isinstance(pairs, list):
        raise entry.fail(f"expected a list of pairs, got {type(pairs).__name__}")
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and _name(pair[0]) and type(pair[1]) in (int, float)):
            raise entry.fail(f"expected pairs ['layer-head', score], got {pair!r:.80}")
    if not pairs or len({name for name, _ in pairs}) < len(pairs):
        raise entry.fail("expected every head once, at least one")
    ordered = sorted(pairs, key=lambda pair: tuple(map(int, pair[0].split("-"))))
    return Entry(file, 1, {name: [score] for name, score in ordered})


def _name(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\d+-\d+", value) is not None


def _scores(entry: Entry, name: str) -> list[float]:
    values = entry.value[name]
    if not _name(name):
        raise entry.fail(f"expected heads as 'layer-head', got {name!r}")
    if not isinstance(values, list) or not all(type(v) in (int, float) and v >= 0 for v in values):
        raise entry.fail(f"expected a list of scores for {name!r}, got {values!r:.80}")
    return values
