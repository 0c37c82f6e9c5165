"""How every public name that meets a model is called, on a model that lies somewhere; and why the others meet none."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from placed import Place
from torch import Tensor

import interp
from interp.planted.probes import probe_task
from interp.prompts.rows import Row
from interp.records import variants
from interp.tasks.task import Task

Call = Callable[[Place], Any]
SMALL: dict[str, Any] = {"draws": 2, "random": 2, "examples": 1, "top": 2}
DECODER, BACKUP, VIT, LVLM, NEEDLE = (
    f"zoo:{n}" for n in ("planted-decoder", "planted-backup", "planted-vit", "planted-lvlm", "needle")
)


def difference(logits: Tensor, inputs: Any) -> Tensor:
    last = logits if logits.ndim == 2 else logits[:, -1]
    return last[:, 0] - last[:, 1]


@cache
def facts(p: Place) -> Task:
    """Keys and values, which the planted decoder looks up."""
    return interp.tasks.key_value(p.model(DECODER), n=2)


@cache
def probe(p: Place, name: str) -> Task:
    return probe_task(name.removeprefix("zoo:"), model=p.model(name))


@cache
def notes(p: Place) -> Task:
    made = interp.tasks.needle(p.model(NEEDLE), lengths=(40,), depths=(0.0, 0.6), n=1, whole=True)
    rows = [
        Row(r.clean, r.corrupt, r.answers, r.wrong, {**r.positions, "question": (f"question : {r.meta['key']}", 1)})
        for r in made.rows
    ]
    return Task("notes", tuple(rows), made.score, True).on(p.model(NEEDLE))


def two(task: Task) -> dict[str, Any]:
    return {"base": task.corrupt, "source": task.clean, "metric": task.metric}


def one(task: Task) -> dict[str, Any]:
    return {"inputs": task.clean, "metric": task.metric}


def methods(call: Callable[..., Any], p: Place, family: str, named: tuple[str, ...], **how: Any) -> dict[str, Any]:
    """A call by each of its methods."""
    m, pair = p.model(family), p.pair(family)
    return {name: call(m, **pair, metric=difference, method=name, **how) for name in named}


def patch(p: Place) -> Any:
    """Every component, in a decoder whose heads share keys, among pictures, and in both towers of a vision-language
    model."""
    within = ("resid_pre", "attn_out", "mlp_out", "neurons", "H*.q", "H*.z", "H*.result", "H*.pattern", "K*.k", "K*.v")
    asked = {
        "llama": [f"L0.{one}" for one in within],
        "gemma2": ["L0.H*.z", "L1.resid_mid", "L1.resid_post"],
        "vit": ["L0.H*.z", "L1.resid_pre"],
        "llava": ["text.L0.H*.z", "vision.L0.H*.z"],
    }
    found: dict[str, Any] = {
        name: interp.patch(p.model(name), **p.pair(name), metric=difference, sites=sites)
        for name, sites in asked.items()
    }
    how: dict[str, Any] = {"sites": "L0.H0-1.z", "positions": "each", "both": True}
    return found | {"each": interp.patch(p.model(DECODER), **two(facts(p)), **how)}


def attribute(p: Place) -> Any:
    found = methods(
        interp.attribute, p, "llama", tuple(variants("interp.attribute")), sites="L*.H*.z", verify=1, steps=2
    )
    return found | methods(interp.attribute, p, "vit", ("relp",), sites="L*.resid_pre", verify=1)


def relevance(p: Place) -> Any:
    m, base = p.model("vit"), p.pair("vit")["base"]
    how: dict[str, Any] = {"metric": difference, "steps": 2, "samples": 2}
    return {name: interp.relevance(m, base, method=name, **how) for name in variants("interp.relevance")}


def edges(p: Place) -> Any:
    named = tuple(name for name in variants("interp.edges") if name != "flow")
    found = methods(interp.edges, p, "llama", named, steps=2) | methods(interp.edges, p, "gemma2", ("eap",))
    m, base = p.model("llama"), p.pair("llama")["base"]
    return {**found, "flow": interp.edges(m, base=base, metric=difference, method="flow")}


def circuit(p: Place) -> Any:
    return interp.edges(p.model(DECODER), **two(facts(p)), method="eap").circuit(fraction=0.1)


def faithfulness(p: Place) -> Any:
    how: dict[str, Any] = {"random": 2, "parts": 2}
    return {
        ablation: interp.faithfulness(p.model(DECODER), circuit(p), facts(p), ablation=ablation, **how)
        for ablation in ("resample", "mean")
    }


def importance(p: Place) -> Any:
    """Every measure that `attribute` does not make."""
    how: dict[str, Any] = {"draws": 1, "gates": {"steps": 2, "seeds": 1}, "verify": 1}
    others = interp.tasks.key_value(p.model(DECODER), n=2, seed=1)
    by = ["relp", *variants("interp.importance")]
    return interp.importance(p.model(DECODER), facts(p), by=by, retain=others, **how)


def gates(p: Place) -> Any:
    m, data = p.model(DECODER), facts(p).clean
    return {kind: interp.heads.gates(m, data, kind, steps=3, seeds=1) for kind in ("hard-concrete", "vib", "binary")}


def exchange(p: Place) -> Any:
    m, pair = p.model("llama"), p.pair("llama")
    away = interp.directions.mean_difference(m, pair["base"], pair["source"], site="L1.resid_pre")
    how: dict[str, Any] = {"site": "L1.resid_pre", "basis": away, "controls": 2}
    return interp.directions.exchange(m, **pair, metric=difference, **how)


def prune(p: Place) -> Any:
    """Less of a model, and what it says."""
    m, x = p.model("llama"), p.pair("llama")["base"]
    scores = {f"L{layer}.H{head}": float(layer + head) for layer in range(2) for head in range(4)}
    how: tuple[Any, ...] = ("mask", "cut")
    return {one: interp.prune(m, scores, keep=6, how=one).model.run(x)["logits"] for one in how}


def generate(p: Place) -> Any:
    edits = [interp.Blend("L1.H1", to="uniform", amount=0.5), interp.Scale("L0.H0.z", 0.5)]
    found = p.model(DECODER).generate(facts(p).clean, edits=edits, max_new_tokens=3)
    return found.ids, found.logprobs


def streamed(p: Place) -> Any:
    m = p.model("llama")
    ids = p.pair("llama")["base"]["input_ids"].tolist()
    return [tape["L0.H1.pattern"] for tape in m.stream(ids, record="L0.H1.pattern", batch=1)]


def edited(p: Place) -> Any:
    m = p.model("llama")
    with m.edited([interp.Zero("L0.H1.z"), interp.MaskKeys("L1.H*", keys=[1])]):
        return m.run(p.pair("llama")["base"])["logits"]


def stored(p: Place) -> Any:
    """On the device, on the CPU, in a directory."""
    m, x = p.model("llava"), p.pair("llava")["base"]
    kinds = ("device", "cpu", tempfile.mkdtemp())
    components = ("resid_pre", "attn_write", "mlp_out", "q", "k", "z", "result", "pattern", "scores")
    asked = [*(f"text.L*.{one}" for one in components), "vision.L*.z"]
    return [m.run(x, record=asked, store=kind) for kind in kinds]


def attention(p: Place) -> Any:
    """Every statistic there is."""
    stats = [
        "lse", "entropy", "max", "argmax", "topk:2", "distance", "first", "previous", "self", "sink", "mass:image",
        "received", "seen", "received_mean",
    ]  # fmt: skip
    asked = {"llava": ("text.L*", "vision.L*"), "gemma2": ("L*",), "vit": ("L*",)}
    found = {}
    for name, heads in asked.items():
        m, x = p.model(name), p.pair(name)["base"]
        mine = [s for s in stats if s != "mass:image" or name == "llava"]
        found |= {(name, some): m.attention(x, stats=mine, heads=some).values for some in heads}
    return found


def report(p: Place) -> Any:
    """Every step of a report, of pictures and of a vision-language model."""
    found = {}
    for name in (VIT, LVLM):
        out = Path(tempfile.mkdtemp()) / "report"
        made = interp.report(p.model(name), task=probe(p, name), out=out, name=name, **SMALL)
        found[name] = made.rows, len(made.warnings)
    return found


def chunked(p: Place) -> Any:
    m, ids = p.model(NEEDLE), notes(p).clean.kwargs["input_ids"]
    with interp.long.long_heads(m, chunk=8, keep=6):
        return m.run({"input_ids": ids})["logits"]


def mask_heads(p: Place) -> Any:
    how: dict[str, Any] = {"heads": ["L1.H0", "L1.H1"], "counts": (2,), "draws": 1}
    return {
        phase: interp.long.mask_heads(p.model(NEEDLE), notes(p), phase=phase, **how) for phase in ("decode", "both")
    }


def text(p: Place) -> str:
    return str(notes(p).rows[0].clean)


def checked(p: Place) -> Any:
    return {name: [line.verdict == "pass" for line in p.model(name).check().lines] for name in ("llama", "t5", "swin")}


def capable(p: Place) -> Any:
    return {name: [row.answer == "yes" for row in p.model(name).capabilities().rows] for name in ("gpt2", "llava")}


KNOWS = {
    "induction": "zoo:induction",
    "ioi": "zoo:ioi",
    "key_value": DECODER,
    "needle": NEEDLE,
    "shapes": "zoo:shapes-lvlm",
}
"""Which model knows the words of which task."""


def asked(name: str, p: Place) -> Any:
    how: dict[str, Any] = {"lengths": (40,), "depths": (0.5,)} if name == "needle" else {}
    task = getattr(interp.tasks, name)(p.model(KNOWS[name]), n=2, **how)
    return task.right(), task.metric(p.model(KNOWS[name]).run(task.clean)["logits"], task.clean).tolist()


class Squared:
    """A head program: weights in proportion to the squares of the softmax's."""

    def pattern(self, part: Any) -> Tensor:
        weights = part.softmax(part.scores()) ** 2
        return weights / weights.sum(-1, keepdim=True)

    def z(self, part: Any) -> Tensor:
        return part.read(self.pattern(part))


EDITS: dict[str, Any] = {
    "Apply": [interp.Apply("L1.H1.z", torch.tanh)],
    "Program": [interp.edits.Program("L1.H1", Squared()), interp.edits.Program("L1.H2", Squared(), positions="last")],
    "Set": [interp.Set("L1.z", 0.5), interp.Set("L1.H1.pattern", 0.25), interp.Set("L1.H1.scores", 0.0)],
    "Scale": [interp.Scale("L0.H1.z", 0.5, positions=[1, 2]), interp.Scale("L1.H1.k", 0.5, expand=True)],
    "Zero": [interp.Zero("L1.H2.result")],
    "Mean": [interp.Mean("L0.H*.z")],
    "Add": [interp.Add("L1.resid_pre", torch.linspace(-1, 1, 32), rows=(1,))],
    "Project": [interp.edits.Project("L1.resid_pre", torch.eye(32)[:, :3], torch.ones(32))],
    "MaskKeys": [interp.MaskKeys("L1.H1", keys=[1]), interp.MaskKeys("L0.H*", keys="first", positions="last")],
    "Temperature": [interp.edits.Temperature("L1.H1", 2.0)],
    "BiasKeys": [interp.edits.BiasKeys("L1.H1", keys=[1], amount=1.0)],
    "Emphasize": [interp.edits.Emphasize("L1.H1", keys=[1], amount=0.5)],
    "Redistribute": [interp.edits.Redistribute("L1.H1", target=[1], fraction=0.5)],
    "Blend": [interp.Blend("L1.H1", amount=0.5), interp.Blend("L0.H0", to="uniform", amount=0.5)],
    "UniformAttention": [interp.edits.UniformAttention("L1.H1")],
    "Calibrate": [interp.edits.Calibrate("L1.H*", threshold=0.1)],
    "Streaming": [interp.edits.Streaming("L1.H1", first=1, recent=2)],
    "RouteHeads": [interp.edits.RouteHeads("L1.H*.z", keep=2)],
}


def under(edits: list[Any], p: Place) -> Any:
    """A run under each edit by itself: logits and a pattern."""
    m, base = p.model("llama"), p.pair("llama")["base"]
    return [m.run(base, edits=[edit], record=["L1.H1.pattern", "L1.resid_post"]) for edit in edits]


def judged(name: str, p: Place) -> Tensor:
    """A metric of a run."""
    from interp import metrics

    task, first = facts(p), [ids[:1] for ids in facts(p).answer_ids]
    logits = task.model.run(task.clean)["logits"] if task.model is not None else None
    assert isinstance(logits, Tensor)
    wrong = metrics.LogitDifference(task.answer_ids, task.wrong_ids)
    found: dict[str, Any] = {
        "LogitDifference": wrong, "Logit": metrics.Logit(task.answer_ids), "LogProb": metrics.LogProb(tuple(first)),
        "Probability": metrics.Probability(task.answer_ids, task.wrong_ids),
        "Accuracy": metrics.Accuracy(task.answer_ids),
        "KL": metrics.KL(p.model(DECODER).run(task.corrupt)["logits"][:, -1:]),
        "RecoveredFraction": metrics.RecoveredFraction(wrong, 0.0, 2.0),
    }  # fmt: skip
    made: Tensor = found[name](logits, task.clean)
    return made


METRICS = ("LogitDifference", "Logit", "LogProb", "Probability", "Accuracy", "KL", "RecoveredFraction")


CALLS: dict[str, Call] = {
    "patch": patch,
    "path_patch": lambda p: interp.path_patch(
        p.model("llama"), **p.pair("llama"), metric=difference, receivers=["L1.K0.k_in", "L1.mlp_in"]
    ),
    "patching.align": lambda p: interp.patch(
        p.model(DECODER), **two(facts(p)), sites="L0.resid_pre",
        align=interp.patching.align(facts(p).clean.find(","), facts(p).corrupt.find(",")), reduce="mean",
    ),
    "patching.Average": lambda p: interp.patch(
        p.model(DECODER), base=facts(p).corrupt, source=interp.patching.Average(facts(p).clean),
        metric=facts(p).metric, sites="L*.H*.z",
    ),
    "patching.Noise": lambda p: interp.patch(
        p.model("llama"), base=p.pair("llama")["base"], source=interp.patching.Noise(), metric=difference,
        sites="embed",
    ),
    "patching.direct_effect": lambda p: interp.patching.direct_effect(p.model(DECODER), **one(facts(p))),
    "patching.knockout": lambda p: interp.patching.knockout(
        p.model("llava"), p.pair("llava")["base"], metric=difference, edges=[([1, 2], "last")]
    ),
    "lens": lambda p: interp.lens(
        p.model("llava"), p.pair("llava")["base"], sites="text.L1.H*.result", answers=torch.tensor([1, 1]), top=2
    ),
    "attribute": attribute,
    "relevance": relevance,
    "attribution.key_spans": lambda p: interp.attribution.key_spans(
        p.model("llama"), p.pair("llama")["base"], metric=difference, spans={"some": [1, 2]}
    ),
    "attribution.agree": lambda p: interp.attribution.agree(
        p.model("llama"), p.pair("llama")["base"], metric=difference, rows="last", random=1, shares=(0.0, 0.5)
    ),
    "edges": edges,
    "circuits.acdc": lambda p: interp.circuits.acdc(p.model(DECODER), **two(facts(p)), threshold=0.05),
    "Circuit": circuit,
    "faithfulness": faithfulness,
    "directions.mean_difference": lambda p: interp.directions.mean_difference(
        p.model("llama"), *p.pair("llama").values(), site="L1.H1.q"
    ),
    "directions.random_like": lambda p: interp.directions.random_like(
        interp.directions.mean_difference(p.model("llama"), *p.pair("llama").values(), site="L1.H1.q"), 3
    ),
    "directions.exchange": exchange,
    "directions.subspace": lambda p: interp.directions.subspace(
        p.model("llama"), p.pair("llama")["base"], metric=difference, sites="L1.H1.q", ranks=[1], draws=2
    ),
    "directions.das": lambda p: interp.directions.das(
        p.model("llama"), **p.pair("llama"), metric=difference, site="L1.resid_pre", dim=2, steps=2, seeds=(0,),
        rate=1e-4, heldout=0.5, controls=1,
    ),
    "head": lambda p: interp.head(p.model(DECODER), "L1.H1", facts(p), examples=1),
    "head_roles": lambda p: interp.head_roles(p.model(DECODER), n=2, length=6, repeats=2),
    "importance": importance,
    "heads.atlas": lambda p: interp.heads.atlas(
        p.model("llava"), p.pair("llava")["base"], heads="text.L*", clusters=2, steps=5
    ),
    "heads.gates": gates,
    "heads.head_circuits": lambda p: interp.heads.head_circuits(p.model("llama"), draws=2),
    "prune": prune,
    "sinks": lambda p: interp.sinks(p.model(DECODER), facts(p).clean, least=2),
    "sink.sink_knockout": lambda p: interp.sink.sink_knockout(
        p.model(DECODER), **one(facts(p)), sinks=interp.sinks(p.model(DECODER), facts(p).clean, least=2), draws=2
    ),
    "sink.act": lambda p: interp.sink.act(p.model(DECODER), facts(p), heldout=facts(p), draws=2),
    "retrieval_heads": lambda p: [
        interp.retrieval_heads(p.model(NEEDLE), notes(p), mode=mode) for mode in ("event", "set", "r2")
    ],
    "long.query_heads": lambda p: interp.long.query_heads(p.model(NEEDLE), notes(p), null="question"),
    "long.mask_heads": mask_heads,
    "long.influence": lambda p: interp.long.influence(
        p.model(NEEDLE), [text(p), text(p)[:40]], heads=["L1.H0"], random=1, chunk=8
    ),
    "long.infini_retrieve": lambda p: interp.long.infini_retrieve(
        p.model(NEEDLE), text(p), "question", window=24, keep=6, phrase=3
    ),
    "long.long_heads": chunked,
    "explore": lambda p: {
        name: interp.explore(p.model(name), probe(p, name), examples=1).payload
        for name in (BACKUP, LVLM)
    },
    "report": report,
    "Model.run": stored,
    "Model.stream": streamed,
    "Model.edited": edited,
    "Model.generate": generate,
    "Model.attention": attention,
    "Model.check": checked,
    "Model.capabilities": capable,
    "Model.prepare": lambda p: {**facts(p).clean.kwargs, **probe(p, LVLM).clean.kwargs},
    "Model.roles": lambda p: p.model(LVLM).roles(probe(p, LVLM).clean),
    **{f"tasks.{name}": partial(asked, name) for name in KNOWS},
    "Task": lambda p: (facts(p).right(), probe(p, LVLM).right()),
    **{f"edits.{name}": partial(under, edits) for name, edits in EDITS.items()},
    **{f"metrics.{name}": partial(judged, name) for name in METRICS},
}  # fmt: skip
"""By name, as `interp.NAME` or `interp.ROOM.NAME` spells it: everything that computes."""

SAME = "what computes is called under another name"
READS = "reads files"
NAMED = "a value, or an error, that holds no tensor"
FILES = "amber auto_circuit chair eap_ig head_scores mib needles pope ruler sva".split()
UNKNOWN = "copy_colors docstring greater_than subject_verb".split()
HELD = (
    "anatomy called_with config device discover dtype example handles inputs last_logits_only on ready reset sites"
    " tokenizer towers"
).split()
WITHOUT: dict[str, str] = {
    **dict.fromkeys(("Site", "InterpError", "Model", "Inputs", "Tape"), NAMED),
    "attach": "every model here was attached",
    "load": "test_load.py",
    "open": READS,
    **dict.fromkeys(("circuits.Edges", "circuits.Faithfulness", "directions.Exchange", "explorer.Explorer"), SAME),
    **dict.fromkeys(("heads.Importance", "patching.Effects"), SAME),
    **dict.fromkeys(("families.Family", "families.Projection", "families.Recipe", "families.register"), NAMED),
    **dict.fromkeys((f"formats.{name}" for name in FILES), READS),
    "reporting.difference": READS,
    "reporting.experiment": "loads models and calls report",
    **dict.fromkeys((f"tasks.{name}" for name in UNKNOWN), "its words are in no model that ships; Task is called"),
    **dict.fromkeys((f"Model.{name}" for name in HELD), "says what is held, or is what every call begins with"),
    **dict.fromkeys(("metrics.Reading", "metrics.MetricError", "formats.FormatError"), NAMED),
}
"""Public names that meet no model, and why."""
