"""A payload with every part of the page in it, made up; and one whose strings mean harm."""

from __future__ import annotations

from typing import Any

import numpy as np

HARM = (
    "<img src=x onerror=window.__hit=1>",
    "</script><script>window.__hit=2</script>",
    "\u202edrawkcab\u202c",
    "long " + "x" * 10_000,
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "\x00\x07\x1b[31m",
    "javascript:window.__hit=3",
    "'\"><svg onload=window.__hit=4>",
    "\ud83d",
    "<!--",
    "=cmd()",
    "\n",
    "",
)
WORDS = "<bos> When Mary and John went to the store , John gave a drink to".split()


def made_up(layers: int = 4, heads: int = 6, *, length: int = 16, examples: int = 1, seed: int = 0) -> dict[str, Any]:
    """A language model's report, as large as you like."""
    random = np.random.default_rng(seed)
    sites = [f"L{layer}.H{head}" for layer in range(layers) for head in range(heads)]
    effect = random.normal(size=len(sites)) * 0.4
    rows = [
        {"site": s, "method": "patch z, denoising", "estimate": v, "low": v - 0.2, "high": v + 0.2,
         "noise_floor": 0.02, "n": 64, "exact": v * 0.97, "verified": bool(v > 0) if abs(v) > 0.6 else None}
        for s, v in zip(sites, effect, strict=True)
    ]  # fmt: skip
    rows += [
        {"site": s, "method": "entropy", "estimate": v}
        for s, v in zip(sites, random.random(len(sites)) * 2, strict=True)
    ]
    weights = np.tril(random.random((examples, len(sites), length, length)) ** 6 + 1e-3)
    weights /= weights.sum(-1, keepdims=True)
    words = [" " + WORDS[n % len(WORDS)] for n in range(length)]
    made: dict[str, Any] = {
        "title": "Heads of a made-up model",
        "finding": "L1.H2 carries most of the effect.",
        "facts": [("model", "made up"), ("examples", 64)],
        "towers": [{"name": "text", "layers": layers, "heads": heads, "kv_heads": heads // 2}],
        "scores": rows,
        "methods": {"patch z, denoising": {"kind": "signed", "unit": "logit difference", "about": "Exact patching."},
                    "entropy": {"kind": "sequential", "unit": "nats", "about": "How widely a head looks."}},
        "examples": [{"name": f"prompt {n}", "tokens": words, "roles": ["text"] * length} for n in range(examples)],
        "patterns": [{"example": n, "sites": sites, "weights": weights[n]} for n in range(examples)],
        "cards": {"L1.H2": {"roles": [("induction", 0.98)], "promotes": [(" Mary", 3.1)], "suppresses": [(" John", -2)],
                            "facts": [("broad text", 0.02)], "notes": ["Looks at the name that came before."]}},
        "circuit": {"title": "Circuit", "edges": [
            {"sender": "embed", "receiver": "L0.H1.q_in", "score": 0.4},
            {"sender": "embed", "receiver": "L0.mlp_in", "score": 0.1},
            {"sender": "L0.H1", "receiver": "L1.H2.k_in", "score": -0.8},
            {"sender": "L0.H3", "receiver": "L1.H2.v_in", "score": 0.3},
            {"sender": "L0.mlp_write", "receiver": "L1.H2.q_in", "score": 0.2},
            {"sender": "L1.H2", "receiver": "logits", "score": 1.2}]},
        "curves": [{"title": "Faithfulness", "x_title": "share of edges kept", "y_title": "f", "log_x": True,
                    "lines": [{"name": "by score", "x": [0.01, 0.1, 1], "y": [0.4, 0.9, 1], "low": [0.3, 0.8, 1],
                               "high": [0.5, 1, 1]},
                              {"name": "random", "x": [0.01, 0.1, 1], "y": [0, 0.1, 1], "kind": "baseline"}],
                    "levels": [("whole model", 1.0)]}],
        "tables": [{"title": "Agreement", "rows": [{"a": "patch", "b": "relp", "spearman": 0.9}]}],
        "checks": [{"name": "hooks off", "ok": True, "detail": "bit for bit"}],
        "links": [("heads.csv", "heads.csv")],
        "provenance": {"versions": {"torch": "2"}, "seed": 0},
    }  # fmt: skip
    if "L1.H2" not in sites:
        made["cards"] = {}
    return made


def large(edges: int = 1328) -> dict[str, Any]:
    """A report of a model of 30 layers of 9 heads over 3 kv heads, with a circuit of many edges."""
    made, random = made_up(30, 9, length=18), np.random.default_rng(2)
    made["towers"][0]["kv_heads"] = 3
    found: dict[tuple[str, str], float] = {}
    while len(found) < edges:
        low, high = sorted(random.choice(30, size=2, replace=False).tolist())
        part, count = [("q_in", 9), ("k_in", 3), ("v_in", 3)][random.integers(3)]
        reader = f"L{high}.{'H' if part == 'q_in' else 'K'}{random.integers(count)}.{part}"
        found[f"L{low}.H{random.integers(9)}", reader] = float(random.normal())
    made["circuit"] = {"title": "Circuit", "edges": [
        {"sender": sender, "receiver": receiver, "score": score} for (sender, receiver), score in found.items()
    ]}  # fmt: skip
    return made


def pictured() -> dict[str, Any]:
    """Two towers, and a picture of 3 x 4 patches behind a class token and a register."""
    random = np.random.default_rng(1)
    sites = [f"vision.L{layer}.H{head}" for layer in range(2) for head in range(3)]
    weights = random.random((len(sites), 14, 14)) ** 4
    weights /= weights.sum(-1, keepdims=True)
    pixels = np.kron(random.integers(0, 255, (3, 4, 3), dtype=np.uint8), np.ones((8, 8, 1), dtype=np.uint8))
    tokens = ["[CLS]", "register 0", *(f"({r},{c})" for r in range(3) for c in range(4))]
    return {
        "title": "Heads of two towers",
        "towers": [{"name": "vision", "layers": 2, "heads": 3}, {"name": "text", "layers": 2, "heads": 4}],
        "scores": [{"site": s, "method": "entropy", "estimate": float(n)} for n, s in enumerate([*sites, "L0.H1"])],
        "examples": [{"name": "picture", "tokens": tokens}],
        "patterns": [{"example": 0, "sites": sites, "weights": weights}],
        "images": [{"name": "made up.png", "png": pixels, "grid": [3, 4], "positions": list(range(2, 14))}],
    }


def harmful() -> dict[str, Any]:
    """Every string of a payload is one that means harm."""
    payload = made_up(2, 2, length=len(HARM))
    first = HARM[0]
    payload |= {"title": HARM[1], "finding": first, "facts": [(one, one) for one in HARM], "warnings": list(HARM)}
    payload["examples"] = [{"name": one, "tokens": list(HARM), "roles": list(HARM), "note": one} for one in HARM[:1]]
    payload["cards"] = {"L1.H1": {"roles": [(one, 1.0) for one in HARM], "promotes": [(one, 1.0) for one in HARM],
                                  "notes": list(HARM), "facts": [(one, one) for one in HARM]}}  # fmt: skip
    payload["methods"] = {}
    payload["scores"] = [{"site": "L1.H1", "method": one, "estimate": n - 3.0} for n, one in enumerate(HARM)]
    payload["circuit"] |= {"title": first, "about": HARM[1]}
    payload["curves"] = [{"title": first, "about": first, "x_title": first, "y_title": first,
                          "lines": [{"name": one, "x": [1, 2], "y": [1, 2]} for one in HARM],
                          "levels": [(first, 1)]}]  # fmt: skip
    payload["tables"] = [{"title": first, "about": HARM[1], "rows": [{one: one for one in HARM}]}]
    payload["checks"] = [{"name": one, "ok": False, "detail": one} for one in HARM]
    payload["links"] = [(one, "heads.csv") for one in HARM]
    payload["provenance"] = {one: {one: one} for one in HARM}
    payload["images"] = [{"name": first, "png": np.zeros((4, 4, 3), np.uint8), "grid": [2, 2], "positions": [None] * 4}]
    return payload
