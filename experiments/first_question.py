"""The five things that a user of TransformerLens does every day, each in at most three lines of interp, timed.

    python experiments/first_question.py [--rounds 5]

On zoo:ioi, two prompts of who gives a drink to whom. Where TransformerLens is installed (extra `lens`), it does so too,
through its bridge around the same weights, the numbers are held against each other, and both sides run one after the
other in every round; a time is the median over rounds, on two threads. Each thing is a function below, `ours` and
`theirs`; its lines are counted by this script. The last line is JSON: seconds of both, and the largest difference.

Predicted before it was run (2026-11-30): the numbers agree to 1e-4; looking, running without a head and direct effects
take at most twice TransformerLens' time, since every call checks that its edits and recordings came to pass; patching
every head takes at most a fifth of it, because it is one sweep and not a loop of whole passes.

Measured: numbers agree to 7e-6. The three runs take 0.76 to 0.84 of TransformerLens' time (both sides in every
round, on a machine with one other process), patching every head 0.13 of it. Direct effects have no side
of TransformerLens here, so that part of the prediction was not judged.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.util
import inspect
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

import interp

CLEAN, CORRUPT = (f"When Mary and John went to the store, {name} gave a drink to" for name in ("John", "Mary"))
LAYER, HEAD = 2, 4
Thing = Callable[[Any, Any], Tensor]


def logits(m: Any, t: Any) -> Tensor:
    """What does the model say, and what is in it? Logits at the end."""
    tape = m.run(t.clean, record="*")
    return tape["logits"][:, -1]


def looks(m: Any, t: Any) -> Tensor:
    """Where does a head look?"""
    return m.run(t.clean, record=f"L{LAYER}.H{HEAD}.pattern")[f"L{LAYER}.H{HEAD}.pattern"]


def without(m: Any, t: Any) -> Tensor:
    """What if the head says nothing?"""
    return m.run(t.clean, edits=interp.Zero(f"L{LAYER}.H{HEAD}.z"))["logits"][:, -1]


def patched(m: Any, t: Any) -> Tensor:
    """Which heads carry the answer from the clean run into the corrupt one?"""
    return interp.patch(m, base=t.corrupt, source=t.clean, metric=t.metric, sites="L*.H*.z").values.mean(-1)


def direct(m: Any, t: Any) -> Tensor:
    """What does each head write towards the answer by itself?"""
    e = interp.patching.direct_effect(m, t.clean, metric=t.metric)
    return e.only("result").values.mean(-1)


THINGS: tuple[Thing, ...] = (logits, looks, without, patched, direct)


class Lens:
    """The same five through TransformerLens' bridge."""

    def __init__(self, m: Any, task: Any) -> None:
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

        inside = copy.deepcopy(m.module)
        inside.set_attn_implementation("eager")
        self.bridge = build_bridge_from_module(inside, "GPT2LMHeadModel", hf_config=inside.config)
        self.clean, self.corrupt = task.clean.ids, task.corrupt.ids
        self.right, self.wrong = (ids[0][0] for ids in (task.metric.answers, task.metric.wrong))

    def score(self, logits: Tensor) -> Tensor:
        return (logits[:, -1, self.right] - logits[:, -1, self.wrong]).mean()

    def logits(self) -> Tensor:
        return self.bridge.run_with_cache(self.clean)[0][:, -1]

    def looks(self) -> Tensor:
        return self.bridge.run_with_cache(self.clean)[1][f"blocks.{LAYER}.attn.hook_pattern"][:, HEAD]

    def without(self) -> Tensor:
        def silent(z: Tensor, hook: Any) -> Tensor:
            z = z.clone()
            z.view(*z.shape[:2], -1, self.width)[:, :, HEAD] = 0
            return z

        return self.bridge.run_with_hooks(self.clean, fwd_hooks=[(f"blocks.{LAYER}.attn.hook_z", silent)])[:, -1]

    @property
    def width(self) -> int:
        return int(self.bridge.cfg.d_head)

    def patched(self) -> Tensor:
        """A loop over heads: each takes z of the clean run at every position."""
        _, cache = self.bridge.run_with_cache(self.clean)
        start = self.score(self.bridge(self.corrupt))
        found = []
        for layer in range(self.bridge.cfg.n_layers):
            for head in range(self.bridge.cfg.n_heads):

                def put(z: Tensor, hook: Any, layer: int = layer, head: int = head) -> Tensor:
                    z, clean = z.clone(), cache[f"blocks.{layer}.attn.hook_z"]
                    shape = (*z.shape[:2], -1, self.width)
                    z.view(shape)[:, :, head] = clean.view(shape)[:, :, head]
                    return z

                hooked = self.bridge.run_with_hooks(self.corrupt, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", put)])
                found.append(self.score(hooked) - start)
        return torch.stack(found)


def lines(thing: Thing) -> int:
    """Statements of a function, its docstring left out."""
    (made,) = ast.parse(inspect.getsource(thing)).body
    assert isinstance(made, ast.FunctionDef)
    return len(made.body) - 1


def timed(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    with torch.no_grad():
        found = run()
    return time.perf_counter() - start, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(2)
    m = interp.load("zoo:ioi")
    task = interp.compare(m, CLEAN, CORRUPT, answer=" Mary", wrong=" John")
    lens = Lens(m, task) if importlib.util.find_spec("transformer_lens") else None
    said = {}
    for thing in THINGS:
        theirs = getattr(lens, thing.__name__, None)
        sides = {"ours": lambda thing=thing: thing(m, task), **({"theirs": theirs} if theirs else {})}
        runs = [{side: timed(run) for side, run in sides.items()} for _ in range(rounds + 1)][1:]
        row = {side: round(median(run[side][0] for run in runs), 4) for side in sides}
        row["lines"] = lines(thing)
        if theirs:
            ours, other = runs[-1]["ours"][1], runs[-1]["theirs"][1]
            row["apart"] = float(f"{float((ours.reshape(-1) - other.reshape(-1)).abs().max()):.2g}")
        said[thing.__name__] = row
        print(f"{inspect.getdoc(thing)}  {row}")
    assert all(row["lines"] <= 3 for row in said.values())
    print(json.dumps({"experiment": "first_question", **said}))


if __name__ == "__main__":
    main()
