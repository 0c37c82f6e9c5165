"""What finding retrieval heads costs: one prefill of prompt and answer against the decode loop of the paper's code.

    python experiments/bench/retrieval.py

The loop is the scheme of Wu et al.'s repository on the same model: one needle at a time, a prefill without patterns
through all but the last token, then greedy decoding token by token under eager attention with the attentions of the
one-row query, and for every layer and head the top key. It goes on for `--steps` tokens (50 there; zoo:needle never
says the newline that would end it earlier). Both sides score the same needles in every round, in an order that turns,
and ratios are medians over rounds. Event scores must agree for every needle the model answers right, else the run
fails; only steps of the answer can copy it here, so the loop's further ones are compared as well and said if they copy.
`answer_only` is the ratio where the loop stops with the answer, which needs to be known for that. Ends with one JSON
line.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

import interp
from interp.long.needles import alike, answer_span
from interp.results.retrieval import RetrievalHeads
from interp.tasks.task import Task


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    m = interp.load(options.model)
    task = interp.tasks.needle(m, lengths=options.lengths, n=options.n, whole=True)
    answer = len(task.answer_ids[0])
    eager: Any = copy.deepcopy(m.module)
    eager.set_attn_implementation("eager")
    found, full, short = ours(m, task), loop(m, eager, task, options.steps), loop(m, eager, task, answer)
    compared = agree(found, short)
    extra = int(((full - short) > 0).any(0).sum())
    print(f"{compared} of {len(task)} needles answered right and scored alike; {extra} copied again later on")
    sides: dict[str, Callable[[], object]] = {
        "ours": lambda: ours(m, task),
        "loop": lambda: loop(m, eager, task, options.steps),
        "short": lambda: loop(m, eager, task, answer),
    }
    rounds = [_round(sides, n) for n in range(options.rounds)]
    for one in rounds:
        print({name: round(seconds, 3) for name, seconds in one.items()})
    ratios = {side: median(one[side] / one["ours"] for one in rounds) for side in ("loop", "short")}
    print(json.dumps({
        "bench": "retrieval", "vs_decode_loop": round(ratios["loop"], 2), "answer_only": round(ratios["short"], 2),
        "needles": len(task), "compared": compared, "lengths": options.lengths, "steps": options.steps,
        "threads": options.threads,
    }))  # fmt: skip


def ours(m: interp.Model, task: Task) -> RetrievalHeads:
    """Teacher-forced, in event mode, the model's attention and its statistics in one pass."""
    return interp.retrieval_heads(m, task, mode="event", impl="auto")


def loop(m: interp.Model, eager: Any, task: Task, steps: int) -> Tensor:
    """Event scores [head, needle] by decoding with a twin of the model whose attention is eager."""
    ids = {row: given[n : n + 1] for rows, given in alike(task, 1) for n, row in enumerate(rows)}
    return torch.stack([_decoded(m, eager, ids[r], answer_span(task, r), steps) for r in range(len(task))], dim=1)


@torch.no_grad()
def _decoded(m: interp.Model, eager: Any, given: Tensor, span: range, steps: int) -> Tensor:
    ids = given[:, : -len(span)]
    scores: dict[tuple[int, int], float] = {}
    past = m.module(ids[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
    token, prompt = ids[:, -1:], ids[0].tolist()
    for _ in range(steps):
        out = eager(token, past_key_values=past, use_cache=True, output_attentions=True)
        past, token = out.past_key_values, out.logits[:, -1:].argmax(-1)
        _count(scores, out.attentions, prompt, int(token), span)
    return torch.tensor([scores[place] for place in sorted(scores)], dtype=torch.double)


def _count(scores: dict[tuple[int, int], float], attentions: Any, prompt: list[int], said: int, span: range) -> None:
    for layer, weights in enumerate(attentions):
        for head in range(weights.shape[1]):
            key = int(weights[0, head, -1].topk(1).indices)
            copied = key in span and prompt[key] == said
            scores[layer, head] = scores.get((layer, head), 0.0) + copied / len(span)


def agree(found: RetrievalHeads, decoded: Tensor) -> int:
    """How many needles the model answers right; their scores are the same by both ways, or the run fails."""
    right = found.recall == 1
    different = (found.scores[:, right] - decoded[:, right]).abs()
    if float(different.max()) > 1e-9:
        raise SystemExit(f"scores differ by {float(different.max()):.3g}: the two ways do not find the same heads")
    return int(right.sum())


def _round(sides: dict[str, Callable[[], object]], n: int) -> dict[str, float]:
    names = list(sides)
    return {name: _timed(sides[name]) for name in (*names[n % len(names) :], *names[: n % len(names)])}


def _timed(side: Callable[[], object]) -> float:
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:needle")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 1000])
    parser.add_argument("--n", type=int, default=2, help="needles for each length and depth")
    parser.add_argument("--steps", type=int, default=50, help="tokens the loop decodes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
