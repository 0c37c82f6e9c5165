"""`head_score/*.json` of Retrieval_Head (Wu et al., arXiv 2404.15574): `{"layer-head": [score, ...]}`, a score a test.

Only tests the model passed are in such a file, and not which: lengths, depths and the way of counting are not known.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from interp.formats.reading import Entry, lines
from interp.retrieval_scores import RetrievalHeads


def head_scores(path: str | Path) -> RetrievalHeads:
    """The scores of every head, as `interp.retrieval_heads` returns them."""
    entry = lines(path)[0]
    rows = [_scores(entry, name) for name in entry.value]
    if not rows or len({len(row) for row in rows}) != 1 or not rows[0]:
        raise entry.fail("expected the same number of scores for every head, at least one")
    sites = tuple("L{}.H{}".format(*name.split("-")) for name in entry.value)
    tests = len(rows[0])
    scores = torch.tensor(rows, dtype=torch.double)
    recall = torch.full((tests,), torch.nan, dtype=torch.double)
    return RetrievalHeads(sites, scores, torch.ones(tests, dtype=torch.bool), recall, None, (), {"file": entry.file})


def _scores(entry: Entry, name: str) -> list[float]:
    values = entry.value[name]
    if not re.fullmatch(r"\d+-\d+", name):
        raise entry.fail(f"expected heads as 'layer-head', got {name!r}")
    if not isinstance(values, list) or not all(type(v) in (int, float) and v >= 0 for v in values):
        raise entry.fail(f"expected a list of scores for {name!r}, got {values!r:.80}")
    return values
