"""Where the heads of a real model rest, which activations are massive, and what depends on either.

    python experiments/real/sinks.py [--model gemma3] [--quick]

Passages of 64 tokens of Python's documentation, as many rows of random words, and one word said 64 times, with the
definition and threshold of Gu et al. (arXiv 2410.10781: share of heads whose mean weight on the first token is above
0.3); massive activations by the rule of Sun et al. (arXiv 2402.17762: above 100 and above 1,000 times the median).
Interventions: massive activations set to 0, and to their mean, where they first appear; heads made silent, a tenth of
them, those that rest most, those that rest least, and at random. Judged by perplexity on other passages.
Published (Gu et al., natural, random, repeated, in percent): GPT2-XL 77.0, 70.3, 62.3; Mistral-7B 97.5, 75.2, 0;
Llama-2-7B 92.5, 90.1, 0; Llama-3-8B 99.0, 91.2, 0. Cost: about 60 forward passes of 16 passages.

Predicted for SmolLM2-135M, before any run:
 1. Between 60% and 95% of heads have a sink on the first token in natural text, nearly as many on random words, and
    none where one word is repeated.
 2. There are massive activations, in at most 3 dimensions, on the first token, from one early layer (before the sixth)
    up to one of the last three.
 3. Set to 0 where they appear, they take perplexity to ten times or more and the sinks away (under a fifth of what they
    were); set to their mean nothing is lost (under 2%).
 4. The first token's value is short: under a third of the median of the others' length.
 5. A tenth of the heads, those that rest most, can be silent for less perplexity than a tenth at random.

Measured (SmolLM2-135M, 16 passages):
 1. Yes: 71%, 79% and 0%. Random words have more, not fewer.
 2. One dimension, 507 (of 273 activations one is in another), always on the first token, up to layer 27 of 0 to 29; but
    it appears in layer 11, not early: predicted before the sixth, wrong.
 3. Set to 0 it multiplies perplexity by 285,000, set to its mean by 1.005; the sinks do not go away, 54% of heads keep
    theirs (wrong): the first token has something else that is looked at, or the heads below layer 11 do it without.
 4. Yes, 0.25.
 5. No: a tenth of the heads costs a factor 1.31 where they rest most, 1.29 (1.18 to 1.51) at random; resting most does
    not mean doing nothing. Those that rest least are dearer, 1.45.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import torch
from _real import finish, largest, load, map_rows, norms, options, passages, perplexity, rows_of, spearman, without
from torch import Tensor

import interp
from interp.hooks.head_names import head_place, layer_number
from interp.reporting.drawing.figures import bars, head_map
from interp.results.sinks import EPSILON
from interp.tasks.induction import bos, words

LENGTH = 64
"""That of Gu et al.: the number falls with length."""


def main() -> None:
    chosen = options(__doc__)
    m, n = load(chosen), 4 if chosen.quick else 16
    x, judged = passages(m, n, LENGTH), passages(m, n, LENGTH, heldout=True)
    found = interp.sinks(m, x)
    other = {name: interp.sinks(m, rows, activations=False) for name, rows in odd(m, n).items()}
    first = dict(zip(found.sites, found.first.mean(1).tolist(), strict=True))
    whole = perplexity(m, judged)
    massive = told(found)
    made = {
        "passages": n, "length": LENGTH, "opening_token": bool(bos(m)),
        "sink": {"natural": found.metric(), **{name: one.metric() for name, one in other.items()}},
        "sink_by_epsilon": {e / 10: found.metric(e / 10) for e in range(1, 10)},
        "most": largest(first, 5), "over_0.8": sum(value > 0.8 for value in first.values()) / len(first),
        "least_resting": {site: first[site] for site in sorted(first, key=lambda s: first[s])[:5]},
        "massive": massive, "value_length_of_first": value_length(m, x),
        "spearman_rest_and_norm": spearman(*_paired(first, norms(m, x))),
        "perplexity": whole, "silent": silent(m, judged, first, 2 if chosen.quick else 10, whole),
        **({"without_massive": taken_away(m, x, judged, massive, whole)} if massive["activations"] else {}),
    }  # fmt: skip
    layers = [{"site": f"L{layer}", "estimate": value, "low": value, "high": value}
              for layer, value in by_layer(found).items()]  # fmt: skip
    finish(chosen, "sinks", made, {
        "sinks": head_map(map_rows(first), "Mean weight on the first token, 64 tokens of text"),
        "sinks-massive": bars(layers, "Largest activation on the first token, layer by layer", unit="magnitude"),
    })  # fmt: skip


def odd(m: interp.Model, n: int) -> dict[str, Any]:
    """Random words, and one word over and over."""
    pool, rng, opening = words(m), random.Random(0), bos(m)
    length = LENGTH - len(opening)
    return {
        "random": rows_of(m, [[*opening, *rng.choices(pool, k=length)] for _ in range(n)]),
        "repeated": rows_of(m, [[*opening, *[rng.choice(pool)] * length] for _ in range(n)]),
    }


def _paired(a: dict[str, float], b: dict[str, float]) -> tuple[Tensor, Tensor]:
    return torch.tensor(list(a.values())), torch.tensor([b[site] for site in a])


def told(found: Any) -> dict[str, Any]:
    """Massive activations in a few numbers."""
    table = found.massive()
    if table.empty:
        return {"activations": 0}
    layers = sorted({layer_number(site) for site in table["site"]})
    dims = Counter(int(dim) for dim in table["dim"])
    return {
        "activations": len(table), "dims": dict(dims.most_common(6)), "layers": [layers[0], layers[-1]],
        "at_first_token": float((table["position"] == 0).mean()), "largest": float(table["magnitude"].max()),
        "times_median": float(table["times_median"].max()),
    }  # fmt: skip


def by_layer(found: Any) -> dict[int, float]:
    return {layer_number(site): float(top[:, 0, 0].mean()) for site, (top, _, _) in found.activations.items()}


def value_length(m: interp.Model, x: Any) -> float:
    """The length of the first token's value over the median of the others', the median over kv heads."""
    tape = m.run(x, record="L*.v")
    sizes = torch.stack([v.float().norm(dim=-1) for v in tape["L*.v"].values()])  # layer, row, position, kv head
    ratio = sizes[:, :, 0].mean(1) / sizes[:, :, 1:].flatten(1, 2).median(1).values
    return float(ratio.median())


def silent(m: interp.Model, x: Any, first: dict[str, float], draws: int, whole: float) -> dict[str, Any]:
    """Perplexity, over that of the whole model, with a tenth of the heads silent. The layers 0 and 1, in which hardly
    any head rests and much depends on each, are left out on all sides."""
    fit = {site: value for site, value in first.items() if head_place(site).layer > 1}
    count, order, rng = len(first) // 10, sorted(fit, key=lambda site: fit[site]), random.Random(0)
    random_ones = [perplexity(m, x, without(rng.sample(order, count))) / whole for _ in range(draws)]
    return {
        "heads": count, "most_resting": perplexity(m, x, without(order[-count:])) / whole,
        "least_resting": perplexity(m, x, without(order[:count])) / whole,
        "random": sum(random_ones) / draws, "random_low": min(random_ones), "random_high": max(random_ones),
    }  # fmt: skip


def taken_away(m: interp.Model, x: Any, judged: Any, massive: dict[str, Any], whole: float) -> dict[str, Any]:
    """The dimensions of the massive activations at the first token, set to 0 and to their mean where they appear."""
    site, dims = f"L{massive['layers'][0]}.resid_post", [int(dim) for dim in massive["dims"]]
    mean = m.run(x, record=site)[site][:, 0, dims].mean(0)

    def put(values: Tensor) -> list[Any]:
        def change(there: Tensor) -> Tensor:
            there[:, 0, dims] = values.to(there)
            return there

        return [interp.Apply(site, change)]

    zero = put(torch.zeros_like(mean))
    return {
        "site": site, "perplexity_zero": perplexity(m, judged, zero) / whole,
        "perplexity_mean": perplexity(m, judged, put(mean)) / whole,
        "sink_before": resting(m, x, []), "sink_zero": resting(m, x, zero),
    }  # fmt: skip


def resting(m: interp.Model, x: Any, edits: list[Any]) -> float:
    """The sink metric from recorded patterns: the share of heads whose mean weight on the first token is a sink's."""
    tape = m.run(x, record="L*.pattern", edits=edits)
    above = [(pattern[..., 0].mean(-1) > EPSILON).double() for pattern in tape["L*.pattern"].values()]
    return float(torch.stack(above).mean())


if __name__ == "__main__":
    main()
