"""How public names that have no record are called, on a model that lies somewhere; and why the rest meet no model.

Methods say in their records (`interp/records.py`) how they are called.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from models import difference, needles
from placed import Place
from torch import Tensor

import interp
from interp import metrics
from interp.kernels.masks import symbols as masks
from interp.planted.probes import probe_task
from interp.tasks.task import Task

Call = Callable[[Place], Any]
DECODER, LVLM = "zoo:planted-decoder", "zoo:planted-lvlm"


@cache
def facts(p: Place) -> Task:
    """Keys and values, which the planted decoder looks up."""
    return interp.tasks.key_value(p.model(DECODER), n=2)


@cache
def picture(p: Place) -> Task:
    """A question to the planted vision-language model."""
    return probe_task("planted-lvlm", model=p.model(LVLM))


def patch(p: Place) -> Any:
    """Every component, in families that are driven in different ways, and both ways round."""
    within = ("resid_pre", "attn_out", "mlp_out", "neurons", "H*.q", "H*.z", "H*.result", "H*.pattern", "K*.k", "K*.v")
    asked = {
        "llama": [f"L0.{one}" for one in within],
        "gemma2": ["L0.H*.z", "L1.resid_mid", "L1.resid_post"],
        "vit": ["L0.H*.z", "L1.resid_pre"],
        "bart": ["encoder.L0.H*.z", "decoder.L1.H*.z", "cross.L0.H*.q"],
        "llava": ["text.L0.H*.z", "vision.L0.H*.z"],
    }
    found: dict[str, Any] = {
        name: [interp.patch(p.model(name), **p.pair(name), metric=difference, sites=site) for site in sites]
        for name, sites in asked.items()
    }
    how: dict[str, Any] = {"sites": "L0.H0-1.z", "positions": "each", "both": True}
    return {**found, "each": patched(p, source=facts(p).clean, **how)}


def patched(p: Place, *, source: Any, **how: Any) -> Any:
    task = facts(p)
    return interp.patch(p.model(DECODER), base=task.corrupt, source=source, metric=task.metric, **how)


def aligned(p: Place) -> Any:
    pairs = interp.patching.align(facts(p).corrupt.find(","), facts(p).clean.find(","))
    return patched(p, source=facts(p).clean, sites="L0.resid_pre", align=pairs, reduce="mean")


def noised(p: Place) -> Any:
    how: dict[str, Any] = {"source": interp.patching.Noise(), "metric": difference, "sites": "embed"}
    return interp.patch(p.model("llama"), base=p.pair("llama")["base"], **how)


def directed(p: Place) -> Tensor:
    found: Tensor = interp.directions.mean_difference(p.model("llama"), *p.pair("llama").values(), site="L1.H1.q")
    return found


def stored(p: Place) -> Any:
    """On the device, on the CPU, in a directory."""
    m, x = p.model("llava"), p.pair("llava")["base"]
    components = ("resid_pre", "attn_write", "mlp_out", "q", "k", "z", "result", "pattern", "scores")
    asked = [*(f"text.L*.{one}" for one in components), "vision.L*.z"]
    return [m.run(x, record=asked, store=kind) for kind in ("device", "cpu", tempfile.mkdtemp())]


def streamed(p: Place) -> Any:
    ids = p.pair("llama")["base"]["input_ids"].tolist()
    return [tape["L0.H1.pattern"] for tape in p.model("llama").stream(ids, record="L0.H1.pattern", batch=1)]


def edited(p: Place) -> Any:
    m = p.model("llama")
    with m.edited([interp.Zero("L0.H1.z"), interp.MaskKeys("L1.H*", keys=[1])]):
        return m.run(p.pair("llama")["base"])["logits"]


def looped(p: Place) -> Any:
    """A loop of three calls, edited in the second."""
    m, ids = p.model("llama"), p.pair("llama")["base"]["input_ids"]
    with m.watch(record="L1.z", edits=[interp.Scale("L0.H1.z", 0.5, steps=1)]) as tape:
        for _ in range(3):
            m.run({"input_ids": ids})
    return tape["L1.z"]


PLACES: dict[str, Callable[[Any, Any], Any]] = {
    "At": lambda m, y: metrics.At("L1.resid_post", lambda value, _: value[:, 0, 1]),
    "Similarity": lambda m, y: metrics.Similarity("final_norm").to(m, y),
    "Distance": lambda m, y: metrics.Distance("final_norm", pool="last").to(m, y),
    "Along": lambda m, y: metrics.Along("final_norm", direction=torch.linspace(-1, 1, 32)),
}


def placed_metric(name: str, p: Place) -> Any:
    """Heads patched on what a metric of a place reads."""
    m, pair = p.model("llama"), p.pair("llama")
    metric = PLACES[name](m, pair["source"])
    return interp.patch(m, base=pair["base"], source=pair["source"], metric=metric, sites="L*.H*.z").values


def generated(p: Place) -> Any:
    edits = [interp.Blend("L1.H1", to="uniform", amount=0.5), interp.Scale("L0.H0.z", 0.5)]
    found = p.model(DECODER).generate(facts(p).clean, edits=edits, max_new_tokens=3)
    return found.ids, found.logprobs


STATISTICS = [
    "lse", "entropy", "max", "argmax", "topk:2", "distance", "first", "previous", "self", "sink", "mass:image",
    "received", "seen", "received_mean",
]  # fmt: skip


def attention(p: Place) -> Any:
    """Every statistic there is."""
    asked = {"llava": ("text.L*", "vision.L*"), "gemma2": ("L*",), "gpt_oss": ("L*",), "vit": ("L*",)}
    found = {}
    for name, every in asked.items():
        m, x = p.model(name), p.pair(name)["base"]
        stats = [one for one in STATISTICS if one != "mass:image" or name == "llava"]
        found |= {(name, heads): m.attention(x, stats=stats, heads=heads).values for heads in every}
    return found


def checked(p: Place) -> Any:
    return {name: [line.verdict == "pass" for line in p.model(name).check().lines] for name in ("llama", "t5", "swin")}


def capable(p: Place) -> Any:
    return {name: [row.answer == "yes" for row in p.model(name).capabilities().rows] for name in ("gpt2", "llava")}


KNOWS = {
    "induction": "zoo:induction", "ioi": "zoo:ioi", "key_value": DECODER, "needle": "zoo:needle",
    "shapes": "zoo:shapes-lvlm",
}  # fmt: skip
"""Which model knows the words of which task."""


def asked(name: str, p: Place) -> Any:
    m, made = p.model(KNOWS[name]), partial(getattr(interp.tasks, name), n=2)
    task = needles(p.model) if name == "needle" else made(m)
    return task.right(), task.metric(m.run(task.clean)["logits"], task.clean).tolist()


class Squared:
    """A head program: weights in proportion to the squares of the softmax's."""

    def pattern(self, part: Any) -> Tensor:
        weights = part.softmax(part.scores()) ** 2
        return weights / weights.sum(-1, keepdim=True)

    def z(self, part: Any) -> Tensor:
        return part.read(self.pattern(part))


EDITS: dict[str, Any] = {
    "Set": [interp.Set("L1.z", 0.5), interp.Set("L1.H1.pattern", 0.25), interp.Set("L1.H1.scores", 0.0)],
    "Scale": [interp.Scale("L0.H1.z", 0.5, positions=[1, 2]), interp.Scale("L1.H1.k", 0.5, expand=True)],
    "Zero": [interp.Zero("L1.H2.result")],
    "Mean": [interp.Mean("L0.H*.z")],
    "Add": [interp.Add("L1.resid_pre", torch.linspace(-1, 1, 32), rows=(1,))],
    "Apply": [interp.Apply("L1.H1.z", lambda z: z.relu()), interp.Apply("L0.H1.pattern", lambda p: p.square())],
    "Project": [interp.edits.Project("L1.resid_pre", torch.eye(32)[:, :3], torch.ones(32))],
    "MaskKeys": [interp.MaskKeys("L1.H1", keys=[1]), interp.MaskKeys("L0.H*", keys="first", positions="last")],
    "Temperature": [interp.edits.Temperature("L1.H1", 2.0)],
    "BiasKeys": [interp.edits.BiasKeys("L1.H1", keys=[1], amount=1.0)],
    "Emphasize": [interp.edits.Emphasize("L1.H1", keys=[1], amount=0.5)],
    "Redistribute": [interp.edits.Redistribute("L1.H1", target=[1], fraction=0.5)],
    "Refocus": [
        interp.edits.Refocus("L1.H*", image=[1, 2, 3], fraction_moved=0.5, least=0.0, rho=0.0),
        interp.Scale("L1.z", 0.5, positions="last", onward=True),
    ],
    "Blend": [interp.Blend("L1.H1", amount=0.5), interp.Blend("L0.H0", to="uniform", amount=0.5)],
    "UniformAttention": [interp.edits.UniformAttention("L1.H1")],
    "Calibrate": [interp.edits.Calibrate("L1.H*", threshold=0.1)],
    "Streaming": [interp.edits.Streaming("L1.H1", first=1, recent=2)],
    "SoftIdentity": [interp.edits.SoftIdentity("L1.H1", 0.5, keep=[0])],
    "RouteHeads": [interp.edits.RouteHeads("L1.H*.z", keep=2)],
    "MixHeads": [interp.edits.MixHeads("L1.z", torch.linspace(-1, 1, 6 * 32).view(6, 32), 2, shared=1)],
    "Program": [interp.edits.Program("L1.H1", Squared()), interp.edits.Program("L1.H2", Squared(), positions="last")],
}


def operators() -> dict[str, Any]:
    """One of each kind of operator, at heads of the tiny Llama."""
    from interp import operators as o

    table, memory = torch.linspace(-1, 1, 40).view(1, 5, 8), torch.linspace(-1, 1, 16).view(1, 2, 8)
    at = "L1.H1-2"
    return {
        "Linear": [
            *(o.Linear(at, name) for name in ("elu", "exp", "taylor", "random")),
            o.Linear(at, "silu", rate=o.slopes(2), normalize=False),
            o.Linear(at, "hedgehog", maps=torch.linspace(-1, 1, 64).view(2, 1, 4, 8)),
        ],
        "InLine": [o.InLine(at)], "RankAugmented": [o.RankAugmented(at)], "LocalLinear": [o.LocalLinear(at)],
        "PrefixScan": [o.PrefixScan(at), o.PrefixScan(at, table[:, 0])],
        "Masked": [o.Masked(at, masks.Window(2)), o.Masked(at, masks.After(1, masks.Windows((0,), 2)))],
        "Clusters": [o.Clusters(at, 2)], "TwoLevel": [o.TwoLevel(at, size=2, keep=1)],
        "Chunks": [o.Chunks(at, budget=2), o.Chunks(at, budget=2, starts=(2,))],
        "DynamicMask": [o.DynamicMask(at, keep=2)], "LowRank": [o.LowRank(at, 2, pool=2)],
        "Estimated": [o.Estimated(at, 3, 1)], "Landmarks": [o.Landmarks(at, 2, keep=1)],
        "Reversed": [o.Reversed(at)], "StaticQK": [o.StaticQK(at), o.StaticQK(at, "random", "random")],
        "RelativeScores": [o.RelativeScores(at, table)], "MemoryTokens": [o.MemoryTokens(at, memory, memory)],
    }  # fmt: skip


def pictured_operators(p: Place) -> Any:
    """Those of towers where every row sees all."""
    from interp import operators as o

    m, base = p.model("vit"), p.pair("vit")["base"]
    edits = [o.Agent("L1.H1", 2), o.Channels("L1.H1"), o.Reversed("L1.H1", "senders")]
    return [m.run(base, edits=[edit])["logits"] for edit in edits]


def under(edits: list[Any], p: Place) -> Any:
    """A run under each edit by itself: the logits, and a residual behind it."""
    m, base = p.model("llama"), p.pair("llama")["base"]
    return [m.run(base, edits=[edit], record="L1.resid_post") for edit in edits]


METRICS: dict[str, Callable[[Task, Tensor], Any]] = {
    "LogitDifference": lambda task, _: metrics.LogitDifference(task.answer_ids, task.wrong_ids),
    "Logit": lambda task, _: metrics.Logit(task.answer_ids),
    "LogProb": lambda task, _: metrics.LogProb(task.answer_ids),
    "Probability": lambda task, _: metrics.Probability(task.answer_ids, task.wrong_ids),
    "Accuracy": lambda task, _: metrics.Accuracy(task.answer_ids),
    "KL": lambda task, logits: metrics.KL(logits[:, -1:].flip(0)),
    "RecoveredFraction": lambda task, _: metrics.RecoveredFraction(task.metric, 0.0, 2.0),
}


def judged(name: str, p: Place) -> Any:
    """A metric of a run."""
    task = facts(p)
    logits = p.model(DECODER).run(task.clean)["logits"]
    return METRICS[name](task, logits)(logits, task.clean)


def figured(p: Place) -> Any:
    """What a figure shows of two heads."""
    panels = interp.figures.attention(p.model(DECODER), facts(p).clean, "L*.H0").panels
    return [torch.from_numpy(panel.array).nan_to_num() for panel in panels if isinstance(panel, interp.figures.Heatmap)]


def compared(p: Place) -> Any:
    """Two prompts in words."""
    texts = [f"When {name} and John went to the store, John gave a drink to" for name in ("Mary", "Tom")]
    task = interp.compare(p.model("zoo:ioi"), *texts, " Mary", " John")
    return task.right(), task.metric(task.model.run(task.clean)["logits"], task.clean).tolist()


def worded(p: Place) -> Any:
    """A metric of words, on ids."""
    m = p.model("zoo:ioi")
    metric = metrics.on(m, metrics.LogitDifference(" Mary", " John"))
    return metric(m.run("When Mary and John went to the store, John gave")["logits"], None)


def lost(p: Place) -> Any:
    """What two texts lose without a head."""
    names = (("Mary", "John"), ("Tom", "Mary"))
    texts = [f"When {a} and {b} went to the store, {b} gave a drink to {a}" for a, b in names]
    return interp.scale.corpus(p.model("zoo:ioi"), texts, stats=[interp.scale.LossWithout(("L1.H0",))]).values


CALLS: dict[str, Call] = {
    "compare": compared,
    "figures.attention": figured,
    "metrics.on": worded,
    "patch": patch,
    "patching.align": aligned,
    "patching.Average": lambda p: patched(p, source=interp.patching.Average(facts(p).clean), sites="L*.H*.z"),
    "patching.Noise": noised,
    "directions.mean_difference": directed,
    "directions.random_like": lambda p: interp.directions.random_like(directed(p), 3),
    "scale.LossWithout": lost,
    "Task": lambda p: (facts(p).right(), picture(p).right()),
    "heads.head_matrix": lambda p: {
        name: vars(interp.heads.head_matrix(p.model(name), "L1.H2")) for name in ("gpt2", "llama")
    },
    "Model.run": stored,
    "Model.stream": streamed,
    "Model.edited": edited,
    "Model.generate": generated,
    "Model.watch": looped,
    "Model.attention": attention,
    "Model.check": checked,
    "Model.capabilities": capable,
    "Model.prepare": lambda p: {**facts(p).clean.kwargs, **picture(p).clean.kwargs},
    "Model.roles": lambda p: p.model(LVLM).roles(picture(p).clean),
    **{f"tasks.{name}": partial(asked, name) for name in KNOWS},
    **{f"edits.{name}": partial(under, edits) for name, edits in EDITS.items()},
    **{f"operators.{name}": partial(under, edits) for name, edits in operators().items()},
    "operators.Agent": pictured_operators,
    "operators.Channels": pictured_operators,
    "operators.find_blocks": lambda p: under(
        interp.operators.find_blocks(p.model("llama"), p.pair("llama")["base"], size=3), p
    ),
    **{f"metrics.{name}": partial(judged, name) for name in METRICS},
    **{f"metrics.{name}": partial(placed_metric, name) for name in PLACES},
}
"""By name, as `interp.NAME` or `interp.ROOM.NAME` spells it."""

VALUE, MADE = "a value, or an error, that holds no tensor", "what a call that is tried here returns"
DRAWN = "Bars Figure Heatmap Lines Link Network Series Trace bars beside over_picture scatter".split()
FILES = "amber auto_circuit chair eap_ig head_scores mib needles node_scores pope ruler sva write_node_scores".split()
UNKNOWN = "copy_colors docstring greater_than subject_verb".split()
HELD = (
    "anatomy called_with config device discover dtype example handles inputs last_logits_only on ready reset sites"
    " tokenizer towers"
).split()
WITHOUT: dict[str, str] = {
    **dict.fromkeys(("Site", "InterpError", "Model", "Inputs", "Tape"), VALUE),
    "attach": "every model here was attached",
    "load": "test_load.py",
    **dict.fromkeys(("scale.merge", "scale.status"), "reads files"),
    **dict.fromkeys(("open", "reporting.difference", *(f"formats.{name}" for name in FILES)), "reads files"),
    **dict.fromkeys((f"figures.{name}" for name in DRAWN), "a value, or drawn from numbers that are there"),
    "reporting.experiment": "loads models and calls report",
    **dict.fromkeys(("Circuit", "circuits.Edges", "circuits.Faithfulness", "directions.Exchange"), MADE),
    **dict.fromkeys(("circuits.SpanEdges", "circuits.Verdict"), MADE),
    **dict.fromkeys(("diffusion.Maps", "diffusion.Hunt"), MADE),
    **dict.fromkeys(("diffusion.columns", "diffusion.pointing"), "reads text, or numbers that are there"),
    "diffusion.encoders": "holds models; denoisers are tried in test_denoisers.py",
    **dict.fromkeys(("explorer.Explorer", "heads.Importance", "heads.HeadMatrix", "patching.Effects"), MADE),
    **dict.fromkeys((f"forgetting.{name}" for name in "AcrossModels Dampened LensAttack ModelsCompared".split()), MADE),
    "robustness.AttentionPerturbation": MADE,
    **dict.fromkeys(("operators.Compared", "operators.Mimicry", "operators.Replaceable", "operators.Routes"), MADE),
    **dict.fromkeys(("operators.Operator", "operators.slopes"), VALUE),
    "operators.dependency_tree": "takes a pattern, and gives a list",
    **dict.fromkeys(("families.Family", "families.Projection", "families.Recipe", "families.register"), VALUE),
    **dict.fromkeys((f"tasks.{name}" for name in UNKNOWN), "its words are in no model that ships; Task is tried"),
    **dict.fromkeys((f"Model.{name}" for name in HELD), "says what is held, or is what every call begins with"),
    "scale.Ray": "workers of a cluster; tests of workers try it",
    "scale.ring_attention": "processes of their own: test_text_over_two.py",
    "scale.hosted": "a model that runs elsewhere: test_hosted.py",
    **dict.fromkeys(("scale.vllm", "scale.vllm_arguments"), "a model in an engine of its own: test_served.py"),
    **dict.fromkeys(("metrics.Reading", "metrics.MetricError", "formats.FormatError"), VALUE),
}
"""Public names that meet no model, and why."""
