"""Edges of planted models: every method finds and misses what was worked out by hand from the answer keys.

Information flow is left out: it asks no metric, so no key says what it should find.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import interp
from interp.metrics.shipped import LogitDifference
from interp.planted import build, key
from interp.planted.answers import Probe
from interp.planted.oracle import inputs

TOLERANCE = 5e-5
FIRST_ORDER = ("eap", "relp")
METHODS = ("exact", *FIRST_ORDER, "eap-ig", "eap-ig-activations")


@cache
def built(name: str) -> tuple[interp.Model, Any]:
    module, processor = build(name)
    return interp.attach(module), processor


def asked(name: str, probe: Probe, direction: str) -> dict[str, Any]:
    """Base, source and metric: denoising puts clean into corrupt."""
    m, processor = built(name)
    clean, corrupt = inputs(processor, probe)
    base, source = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
    if name == "planted-vit":
        right, wrong = (m.module.config.label2id[word] for word in (probe.answer, probe.wrong))
        return {"base": base, "source": source, "metric": lambda logits, _: logits[:, right] - logits[:, wrong]}
    words = getattr(processor, "tokenizer", processor)
    right, wrong = (words.convert_tokens_to_ids(word) for word in (probe.answer, probe.wrong))
    return {"base": base, "source": source, "metric": LogitDifference(((right,),), ((wrong,),))}


def scored(name: str, probe: Probe, direction: str, method: str, **how: Any) -> dict[str, float]:
    """The score of every edge, by name."""
    e = interp.edges(built(name)[0], method=method, **{**asked(name, probe, direction), **how})
    return {e.graph.name(edge): float(value) for edge, value in zip(e.graph.edges, e.values[:, 0], strict=True)}


def auroc(found: dict[str, float], planted: set[str]) -> float:
    """How often a planted edge stands above another one; a tie is half."""
    inside = torch.tensor([abs(value) for name, value in found.items() if name in planted])[:, None]
    outside = torch.tensor([abs(value) for name, value in found.items() if name not in planted])
    return float(((inside > outside).double() + (inside == outside).double() / 2).mean())


PATHS: dict[tuple[str, str], tuple[str, ...]] = {
    ("planted-decoder", "induction"): ("embed->L0.K1.v_in", "L0.H1->L1.K4.k_in", "L1.H4->logits"),
    ("planted-decoder", "question"): ("embed->L0.K1.v_in", "L0.H1->L1.H2.q_in", "L1.H2->logits"),
    ("planted-decoder", "pairs"): ("embed->L0.K4.v_in", "L0.H4->L1.K2.k_in", "L1.H2->logits"),
    ("planted-decoder", "duplicate"): ("embed->L0.H2.q_in", "L0.H2->logits"),
    ("planted-vit", "mark"): ("embed->L1.K2.k_in", "L1.H2->logits"),
    ("planted-lvlm", "question"): ("text.embed->text.L1.H1.q_in", "text.L1.H1->logits"),
    ("planted-lvlm", "picture"): ("text.embed->text.L1.K1.v_in", "text.L1.H1->logits"),
}
"""The way from what differs between the prompts to the logits, edge by edge."""


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize(("name", "probe"), PATHS)
def test_the_planted_path_stands_above_every_other_edge(name: str, probe: str, direction: str) -> None:
    """All of the effect runs along each edge of the only path, so exact patching says the whole of it for each."""
    question, path = key(name).probe(probe), PATHS[name, probe]
    found = scored(name, question, direction, "exact")
    assert auroc(found, set(path)) == 1.0
    assert {edge for edge, value in found.items() if abs(value) > TOLERANCE} == set(path)
    whole = found[path[-1]]
    assert abs(whole) > 7.9
    assert all(found[edge] == pytest.approx(whole, abs=1e-3) for edge in path)
    assert auroc(scored(name, question, direction, "eap-ig", steps=3), set(path)) == 1.0
    for method in FIRST_ORDER:
        found = scored(name, question, direction, method)
        if probe == "duplicate":  # the query decides 32 against 16 or 0 against 16: slopes of e^-16
            assert found[path[-1]] == pytest.approx(whole, abs=1e-3)
            assert abs(found[path[0]]) < 1e-4
        else:
            assert auroc(found, set(path)) == 1.0, method


HALF = "eap-ig", "eap-ig-activations"
PAIR = ("embed->L0.K1.v_in", "embed->L0.K2.v_in", "L0.H1->L0.mlp_in", "L0.H2->L0.mlp_in")
PRIMARY = {"embed->L0.K1.v_in": 4.0, "L0.H1->logits": 4.0}
CANCEL = {
    f"{sender}->{receiver}": 2.0 * weight
    for head, weight in ((0, 2), (1, -2), (3, 1))
    for sender, receiver in (("embed", f"L0.K{head}.v_in"), (f"L0.H{head}", "logits"))
}
SELECTOR = {"embed->L0.K1.v_in": 4.0, "L0.H1->L1.H2.q_in": 4.0}
READER = {"L1.H2->logits": 4.0}


def expected(name: str, direction: str, method: str) -> dict[str, float]:
    """What is worked out by hand; every edge that is not named has 0. Denoising adds what noising takes away.

    and        2 relu(s - 1): one signal alone is flat at corrupt and all of it at clean; the slope is 1 on half of the
               way from s = 0 to 2, so the integrals say 1 for each of the two signals in either direction
    or         the other way round: one signal is enough, so it counts at corrupt and not at clean
    backup     resampling moves the signal and never the flag, so no method sees the backup or the flag it reads
    cancel     all linear: every method says 4, -4 and 2
    saturated  the softmax is flat wherever the gradient is taken, so only `exact` sees who chooses
    """
    sign = 1.0 if direction == "denoise" else -1.0
    gate = {"L0.mlp_write->logits": 2.0}
    if name in ("planted-and", "planted-or"):
        seen = "denoise" if name == "planted-or" else "noise"
        each = 1.0 if method in HALF else 2.0 if direction == seen else 0.0
        key = gate | dict.fromkeys(PAIR, each)
    elif name == "planted-saturated":
        key = READER | (SELECTOR if method == "exact" else {})
    else:
        key = PRIMARY if name == "planted-backup" else CANCEL
    return {edge: sign * value for edge, value in key.items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("name", ["planted-and", "planted-or", "planted-backup", "planted-cancel", "planted-saturated"])
def test_each_method_finds_and_misses_what_the_key_says(name: str, direction: str, method: str) -> None:
    (probe,) = key(name).probes
    found = scored(name, probe, direction, method, steps=2)
    wanted = expected(name, direction, method)
    assert set(wanted) <= set(found)
    for edge, value in found.items():
        assert value == pytest.approx(wanted.get(edge, 0.0), abs=TOLERANCE), edge


def test_an_integral_that_hits_the_middle_of_a_saturated_softmax_overstates_it() -> None:
    """At the middle each of four keys has weight 1/4 and the slope by what is selected is 120; the change is 2."""
    (probe,) = key("planted-saturated").probes
    for steps in (1, 3):
        found = scored("planted-saturated", probe, "denoise", "eap-ig", steps=steps)
        assert found["L0.H1->L1.H2.q_in"] == pytest.approx(240 / steps, rel=1e-3)
        assert found["L1.H2->logits"] == pytest.approx(4.0, abs=TOLERANCE)


def test_zeroing_an_edge_wakes_the_backup_only_for_exact_patching() -> None:
    """Without the flag the backup steps in with 0.75 of the signal, a logit difference of 1.5; its query is saturated,
    so the slope there is 0. Without the signal the difference of 2 is gone."""
    (probe,) = key("planted-backup").probes
    for method, woken in (("exact", 1.5), ("eap", 0.0)):
        found = scored("planted-backup", probe, "noise", method, source="zero")
        assert found["L0.H1->logits"] == pytest.approx(-2.0, abs=TOLERANCE)
        assert found["L0.H1->L1.H2.q_in"] == pytest.approx(woken, abs=TOLERANCE)
        assert found["L1.H2->logits"] == pytest.approx(0.0, abs=TOLERANCE)


KEPT: dict[tuple[str, str], set[str]] = {
    ("planted-and", "noise"): {*PAIR, "L0.mlp_write->logits"},
    ("planted-and", "denoise"): {"embed->L0.K1.v_in", "L0.H1->L0.mlp_in", "L0.mlp_write->logits"},
    ("planted-or", "noise"): {"embed->L0.K1.v_in", "L0.H1->L0.mlp_in", "L0.mlp_write->logits"},
    ("planted-or", "denoise"): {*PAIR, "L0.mlp_write->logits"},
    ("planted-backup", "noise"): set(PRIMARY),
    ("planted-cancel", "noise"): {edge for edge, value in CANCEL.items() if value > 0},
    ("planted-saturated", "noise"): {*SELECTOR, *READER},
}
"""What ACDC keeps. It goes from the last sender to the first and never looks back: where one of two signals is enough
to keep the answer it drops the second head and then needs the first, and what works against the answer goes."""


@pytest.mark.parametrize(("name", "direction"), KEPT)
def test_acdc_keeps_what_the_key_says(name: str, direction: str) -> None:
    (probe,) = key(name).probes
    found = interp.circuits.acdc(built(name)[0], **asked(name, probe, direction), threshold=0.1)
    assert set(found.edges) == KEPT[name, direction]


def test_the_area_under_the_curve_counts_ties_as_half() -> None:
    assert auroc({"a": 1.0, "b": 0.0, "c": 0.0}, {"a"}) == 1.0
    assert auroc({"a": 0.0, "b": 0.0, "c": -1.0}, {"a"}) == 0.25
