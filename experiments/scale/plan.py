"""What a question to a large model or a long corpus will take, before anything is rented: bytes, passes, hours.

    python experiments/scale/plan.py                                  # the two plans of docs/scale.md
    python experiments/scale/plan.py --layers 30 --heads 9 --kv-heads 3 --width 576 --parameters 1.345e8 \
        --pass-seconds 0.4 --tokens-per-second 900                    # yours, with what you measured

Sizes are those of the model's config. Two numbers have to be measured where the work will run: the seconds of one
forward pass over all your prompts (`interp.cost.cost(m, task.clean)` says them) and the tokens a second of one worker
that reads a corpus (a first shard of `interp.scale.corpus` says them). Everything else is arithmetic, given here:

    weights        parameters x bytes
    z of a token   layers x heads x head width x bytes                    recording "L*.z"
    cache          2 x layers x kv heads x head width x bytes             a token
    sweep          sum over layers l of heads x (layers - l) / layers     passes: a patched head runs from its layer on
    estimate       3                                                      passes: forward, forward, backward
    cells an hour  3600 x cells / (pass seconds x sweep)                  of one worker
    corpus         tokens / (tokens a second x workers)                   seconds
    its state      see `interp/scale/corpora/tally.py`                    bytes, whatever the corpus
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields

import torch

from interp.scale.corpora.tally import Tally


@dataclass(frozen=True)
class Plan:
    """A model, a question to it, and what was measured."""

    layers: int = 80
    heads: int = 64
    kv_heads: int = 8
    width: int = 8192
    parameters: float = 7.06e10
    bytes: int = 2
    prompts: int = 32
    tokens: int = 64
    pass_seconds: float = 4.0
    workers: int = 8
    corpus: float = 1e12
    tokens_per_second: float = 2500.0

    @property
    def head_width(self) -> float:
        """Numbers of one head."""
        return self.width / self.heads

    @property
    def sweep(self) -> float:
        """Passes of every head patched by itself."""
        return sum(self.heads * (self.layers - n) / self.layers for n in range(self.layers))

    def rows(self) -> list[tuple[str, str, str]]:
        """What it takes: what, how much, and what to do about it."""
        cells = self.layers * self.heads
        z = self.layers * self.heads * self.head_width * self.bytes
        hours = self.sweep * self.pass_seconds / self.workers / 3600
        days = self.corpus / (self.tokens_per_second * self.workers) / 86400
        workers, speed = self.workers, f"{self.tokens_per_second:,.0f} tokens a second"
        cache = 2 * self.layers * self.kv_heads * self.head_width * self.bytes
        alone, shared = self.sweep * self.pass_seconds, _time(hours * 3600)
        return [
            ("weights", _bytes(self.parameters * self.bytes),
             '`device_map="auto"` or a tensor parallel plan spreads them'),
            ("cache of one token", _bytes(cache), "decides how long a text may be"),
            ("z of one token, all heads", _bytes(z), "record fewer layers, or reduce on the spot"),
            (f"z of {self.prompts} prompts of {self.tokens} tokens", _bytes(z * self.prompts * self.tokens),
             "what a sweep keeps of each of its two runs"),
            ("estimate of every head", "3 passes", f"{_time(3 * self.pass_seconds)}; `interp.attribute`, always first"),
            (f"exact sweep of {cells:,} heads", f"{self.sweep:,.0f} passes",
             f'{_time(alone)} on one worker, {shared} on {workers}: `shard=` or `engine="ray"`'),
            ("cells of one worker in an hour", f"{3600 * cells / alone:,.0f}",
             "after an estimate, the first hundred heads are enough"),
            (f"corpus of {self.corpus:.0e} tokens", _time(days * 86400),
             f"on {workers} workers of {speed}; nothing of it is kept but sums"),
            ("a thousandth of it, at random", _time(days * 86.4), "enough for a mean: see below"),
            ("state of the corpus", _bytes(_state(cells, False)),
             f"of one statistic; {_bytes(_state(cells, True))} with quantiles; written once a block"),
        ]  # fmt: skip


def _state(heads: int, quantiles: bool) -> int:
    v = torch.zeros(1, heads, dtype=torch.float64)
    tally = Tally.of("entropy", v, v + 1, torch.zeros(1, 2, dtype=torch.long), quantiles=quantiles)
    return sum(tensor.numel() * tensor.element_size() for tensor in tally.held.values())


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 1000 or unit == "TB":
            return f"{n:,.3g} {unit}"
        n /= 1000
    raise AssertionError


def _time(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.3g} {unit}"
    return f"{seconds:,.3g} s"


def table(plan: Plan) -> str:
    """As Markdown."""
    lines = ["| what | how much | what to do |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in plan.rows())]
    return "\n".join(lines)


def main() -> None:
    """One plan, of the numbers given."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for one in fields(Plan):
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=type(one.default), default=one.default)
    print(table(Plan(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
