"""What the page of a report is made from: plain values in the shape that `interp.explorer.page` takes."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from interp.reporting.pages.gathered import Gathered

ABOUT = {
    "patch": "exact: the head's z of the other run put into this one; effect on the metric",
    "relp": "estimate of patching from one backward pass with relevance rules",
    "atp": "estimate of patching from one plain backward pass",
    "direct effect": "what the head writes straight to the answer, later layers left out",
    "attention entropy": "mean entropy of the head's rows",
    "attention distance": "mean distance between a row and the keys it weighs",
    "largest weight": "mean of each row's largest weight",
    "sink": "mean weight on the first token over the rows that see it (attention sink)",
}
SEQUENTIAL = ("attention entropy", "attention distance", "largest weight", "sink")
SPLITS = {"heldout": "held-out prompts", "same rows": "the prompts they were found on"}
LINES = {"found": "heads found", "magnitude": "heads that write most", "random": "random heads"}


def payload(made: Gathered, files: list[str]) -> dict[str, Any]:
    """The payload; `files` lie beside the page."""
    about = made.about
    facts = [("model", made.model), ("task", made.task or "none"), ("heads", str(made.rows["site"].nunique()))]
    facts += [
        (name, str(about[name])) for name in ("rows", "dtype", "attention", "seed") if about.get(name) is not None
    ]
    if made.gap is not None:
        task = made.checks["task"]
        facts += [("metric, clean and corrupt", f"{task['clean']:.4g}, {task['corrupt']:.4g}"),
                  ("right answers", f"{task['accuracy']:.1%}")]  # fmt: skip
    return {
        "title": made.title, "finding": made.finding, "facts": facts, "warnings": made.warnings, "towers": made.towers,
        "scores": shown_rows(made), "methods": methods(made), **_seen(made), "cards": cards(made),
        **({"circuit": _circuit(made)} if made.circuit else {}), "curves": curves(made), "tables": tables(made),
        "checks": made.checks.get("lines", []), "links": [(name, name) for name in files],
        "provenance": {"report": dict(about)},
    }  # fmt: skip


def name_of(method: str, direction: str) -> str:
    """A method as the menu has it; exact patching has two directions."""
    return f"{method} ({direction})" if method == "patch" and direction in ("denoise", "noise") else method


def shown_rows(made: Gathered) -> Any:
    """The table with one name per method and direction."""
    rows = made.rows
    names = [name_of(m, d) for m, d in zip(rows["method"], rows["direction"], strict=True)]
    return rows.assign(method=names)


def methods(made: Gathered) -> dict[str, dict[str, Any]]:
    """How each method is drawn, what heads are ranked by first."""
    rows, first = shown_rows(made), made.ranked
    order = dict.fromkeys(rows["method"])
    if len(first):
        best = name_of(first["method"].iloc[0], first["direction"].iloc[0])
        order = dict.fromkeys([best, *order])
    found = {}
    for name in order:
        mine = rows[rows["method"] == name]
        base = name.partition(" (")[0]
        signed = base not in SEQUENTIAL and bool((mine["estimate"] < 0).any() or mine["direction"].iloc[0] != "none")
        floor = mine["noise_floor"].max()
        found[name] = {
            "kind": "signed" if signed else "sequential", "unit": str(mine["metric"].iloc[0]),
            "about": ABOUT.get(base, "as its method defines it"), **({"floor": float(floor)} if floor == floor else {}),
        }  # fmt: skip
    return found


def cards(made: Gathered) -> dict[str, dict[str, Any]]:
    """What is said about the heads that matter, and the kinds of all that have one."""
    ranked = made.ranked.set_index("site") if len(made.rows) else None
    found: dict[str, dict[str, Any]] = {}
    for site in dict.fromkeys([*made.leaders, *made.labels]):
        one: dict[str, Any] = {"roles": [(role, None) for role in made.labels.get(site, "").split(", ") if role]}
        one |= {name: [tuple(pair) for pair in pairs] for name, pairs in made.weights.get(site, {}).items()}
        if ranked is not None and site in ranked.index:
            row = ranked.loc[site]
            one["facts"] = [("rank", str(int(row["rank"]))), ("effect", f"{row['estimate']:+.4g}")]
            if row["low"] == row["low"]:
                one["facts"].append(("interval", f"{row['low']:+.3g} to {row['high']:+.3g}"))
            if abs(row["estimate"]) <= row["noise_floor"]:
                one["notes"] = ["Within the noise floor: no effect."]
        found[site] = one
    return found


def _seen(made: Gathered) -> dict[str, Any]:
    """Examples, patterns and pictures."""
    held = made.patterns
    if not held.get("examples"):
        return {}
    blocks = [
        {"example": block["example"], "sites": block["sites"], "rows": block["rows"], "scale": 1.0,
         "weights": np.frombuffer(base64.b64decode(block["weights"]), dtype=np.uint8).reshape(block["shape"]),
         **({} if block["indices"] is None else {"indices": np.asarray(block["indices"])})}
        for block in held["blocks"]
    ]  # fmt: skip
    images = [{**image, "png": base64.b64decode(image["png"])} for image in held["images"]]
    return {"examples": held["examples"], "patterns": blocks, "images": images}


def _circuit(made: Gathered) -> dict[str, Any]:
    assert made.circuit is not None
    ends = ("sender", "receiver")
    edges = [{**edge, **{end: _placed(edge[end]) for end in ends}} for edge in made.circuit["edges"]]
    return {"edges": edges, "title": f"Circuit of {made.task}", "about": made.circuit["said"]}


def _placed(name: str) -> str:
    """The page knows one embedding and one set of logits, whichever tower they belong to."""
    last = name.rpartition(".")[2]
    return last if last in ("embed", "logits") else name


def curves(made: Gathered) -> list[dict[str, Any]]:
    """Ablation of each tower, and faithfulness of the circuit."""
    found = [ablation_curve(one) for one in made.ablations]
    return found + ([faithfulness_curve(made.circuit)] if made.circuit else [])


def ablation_curve(one: dict[str, Any]) -> dict[str, Any]:
    """Share of the gap that is lost over the number of heads switched off."""
    lines = []
    for name, title in LINES.items():
        rows = [row for row in one["rows"] if row["name"] == name]
        if rows:
            lines.append({"name": title, "x": [r["k"] for r in rows], "y": [r["share"] for r in rows],
                          "low": [r["low"] for r in rows], "high": [r["high"] for r in rows],
                          "kind": "line" if name == "found" else "baseline"})  # fmt: skip
    return {
        "title": f"Heads switched off, {one['tower']}",
        "about": f"Values of corrupt prompts put into k heads of clean ones: {SPLITS[one['split']]}, n = {one['n']}.",
        "x_title": "heads", "y_title": "share of the gap lost", "log_x": True, "lines": lines,
        "levels": [("all of it", 1.0), ("nothing", 0.0)],
    }  # fmt: skip


def faithfulness_curve(found: dict[str, Any]) -> dict[str, Any]:
    """f over the share of edges kept, with random circuits of the same size."""
    here, summary = found["fraction"], found["summary"]
    lines = [
        {"name": "by signed importance", "x": found["grid"], "y": found["signed"], "kind": "line"},
        {"name": "by magnitude", "x": found["grid"], "y": found["unsigned"], "kind": "line"},
        {"name": "the circuit", "x": [here], "y": [summary["f"]], "low": [summary["low"]], "high": [summary["high"]],
         "kind": "points"},
        {"name": "random circuits", "x": [here] * len(found["random"]), "y": found["random"], "kind": "points"},
    ]  # fmt: skip
    return {
        "title": "Faithfulness of circuits", "about": f"{found['said']} ({SPLITS[found['split']]})",
        "x_title": "share of edges kept", "y_title": "f", "log_x": True, "lines": [x for x in lines if x["y"]],
        "levels": [("the whole model", 1.0), ("nothing", 0.0)],
    }  # fmt: skip


def tables(made: Gathered) -> list[dict[str, Any]]:
    """What has no picture of its own."""
    found = []
    if made.agreement:
        about = "Spearman over heads and overlap of the first k, with intervals over prompts."
        found.append({"title": "Agreement of methods", "about": about, "rows": made.agreement})
    if len(made.ranked):
        columns = ["site", "estimate", "low", "high", "exact", "verified", "label"]
        found.append({"title": "The first heads", "about": made.finding,
                      "rows": made.ranked[columns].head(20)})  # fmt: skip
    return found
