"""Five small decoders whose heads hide from one method or another; every effect below was worked out before running.

All are GPT2LMHeadModels of two layers and four heads on prompts `<bos> x y z`. A planted head in layer 0 looks at one
position only (score 200 against 0: exactly one-hot in float32) and copies a signal. The metric is the logit of "yes"
minus that of "no"; clean and corrupt differ in the tokens "on" and "off" ("left" and "right" for the saturated one).
s is the sum of the two signals, denoising puts clean into corrupt, noising corrupt into clean.

    and        on = 1, off = 0; LD = 2 relu(s - 1) - 1. Corrupt s = 0, clean s = 2. One head moved: s = 1, LD = -1.
               Noising or zeroing finds each (-2, all of it); denoising finds neither (0). The slope of relu is 1 at
               clean and 0 at corrupt, so attribution at clean is exact here and at corrupt says 0.
    or         on = 1, off = 0; LD = 2 relu(s + 1) - 2 relu(s - 1) - 3: -1, 1, 1 for s = 0, 1, 2. Denoising finds each
               (+2), noising and zeroing miss each (0) and find the two together (-2); attribution follows the slope:
               2 at corrupt, 0 at clean.
    backup     on = 1, off = -1; the primary head writes the signal and a flag that it has done so; the backup reads the
               flag as its query (score 120 (1 - 2 flag)) and copies 0.75 of the signal if there is none. LD = 2 or -2.
               Interchange moves the signal but never the flag: primary -4, backup exactly 0. Zeroing the primary costs
               only 0.5, zeroing the backup 0, zeroing both 2: methods that change one site at a time miss the backup.
    cancel     three heads write 2, -2 and 1 times the signal. LD = 1 or -1. Single patches give +4, -4 and +2 out of 2
               (normalised 2, -2, 1); the first two together give 0, and the whole layer looks like the third alone.
    saturated  a selector writes +1 ("left") or -1 ("right"); the reader's scores are +-120 times that on the first and
               the second signal. LD = 2 or -2. Patching the selector is worth all 4; zeroing it makes the reader
               uniform, LD = 0. The gradient through the softmax is exactly 0 in float32, so attribution gives the
               selector 0 (1e-8 is left of the norms) and the reader, linear in z, all 4. A path from corrupt to clean
               in steps that hit the middle multiplies the slope there (120) by the step: 10 steps say 24 instead of 4,
               steps that miss the middle say 0.

Limits: one token of signal, no noise; relu is at its kink in no run that is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from interp.planted.answers import AnswerKey, Edge, Expected, Head, Method, Probe, null_heads
from interp.planted.wiring import Layout, Wire, balanced, gpt2, gpt2_head, null_qkv, tokenizer, wires

LAYERS, HEADS, D_HEAD = 2, 4, 8
WIDTH = HEADS * D_HEAD
WORDS = ("on", "off", "left", "right", "?", "yes", "no")
ON, OFF, LEFT, RIGHT, YES, NO = 2, 3, 4, 5, 7, 8
TOKENS, POSITIONS = 3 + len(WORDS), 8
LAYOUT = Layout(WIDTH, token=TOKENS, position=POSITIONS, const=1, a=1, b=1, done=1, select=1, yes=1, no=1)
at = LAYOUT.at
SURE, FIRM = 200.0, 120.0
FIRST, SECOND, LAST = 1, 2, 3


def _skeleton() -> GPT2LMHeadModel:
    """Embeddings, read-out, and every head null."""
    model = gpt2(vocabulary=TOKENS, positions=POSITIONS, layers=LAYERS, heads=HEADS, d_head=D_HEAD)
    for layer in range(LAYERS):
        for head in range(HEADS):
            gpt2_head(model, layer, head, **null_qkv(WIDTH, D_HEAD, seed=10 * layer + head))
    model.transformer.wte.weight.data = balanced(wires(TOKENS, WIDTH, (range(TOKENS), at("token"), 1.0)))
    places = wires(POSITIONS, WIDTH, (range(POSITIONS), at("position"), 1.0))
    places[:, at("const")] = 1.0
    model.transformer.wpe.weight.data = balanced(places)
    model.lm_head.weight.data = wires(TOKENS, WIDTH, ([YES], at("yes"), 1.0), ([NO], at("no"), 1.0))
    return model


def _signal(model: GPT2LMHeadModel, head: int, *, place: int, off: float, to: tuple[tuple[str, float], ...]) -> None:
    """A layer-0 head that looks at one place and writes its signal, on = 1."""
    q = wires(WIDTH, D_HEAD, (at("const"), [0], SURE))
    k = wires(WIDTH, D_HEAD, (at("position", place), [0], 1.0))
    v = wires(WIDTH, D_HEAD, (at("token", ON), [0], 1.0), (at("token", OFF), [0], off))
    o = wires(D_HEAD, WIDTH, *(([0], at(feature), weight) for feature, weight in to))
    gpt2_head(model, 0, head, q=q, k=k, v=v, o=o)


def _neurons(model: GPT2LMHeadModel, thresholds: tuple[float, ...], weights: tuple[float, ...], *, no: float) -> None:
    """The layer-0 MLP adds `weight * relu(a + b - threshold)` to "yes" for each neuron, and `no` to "no"."""
    mlp, neurons = model.transformer.h[0].mlp, range(len(thresholds))
    into: list[Wire] = [(at(name), [i], 1.0) for name in ("a", "b") for i in neurons]
    mlp.c_fc.weight.data = wires(WIDTH, 2, *into)
    mlp.c_fc.bias.data[: len(thresholds)] = -torch.tensor(thresholds)
    out: list[Wire] = [([i], at("yes"), weight) for i, weight in zip(neurons, weights, strict=True)]
    mlp.c_proj.weight.data = balanced(wires(2, WIDTH, *out))
    mlp.c_proj.bias.data = balanced(wires(1, WIDTH, ([0], at("no"), no)))[0]


def _and() -> GPT2LMHeadModel:
    model = _skeleton()
    _signal(model, 1, place=FIRST, off=0.0, to=(("a", 1.0),))
    _signal(model, 2, place=SECOND, off=0.0, to=(("b", 1.0),))
    _neurons(model, (1.0,), (2.0,), no=1.0)
    return model


def _or() -> GPT2LMHeadModel:
    model = _skeleton()
    _signal(model, 1, place=FIRST, off=0.0, to=(("a", 1.0),))
    _signal(model, 2, place=SECOND, off=0.0, to=(("b", 1.0),))
    _neurons(model, (-1.0, 1.0), (2.0, -2.0), no=3.0)
    return model


def _backup() -> GPT2LMHeadModel:
    model = _skeleton()
    q = wires(WIDTH, D_HEAD, (at("const"), [0], SURE))
    k = wires(WIDTH, D_HEAD, (at("position", FIRST), [0], 1.0))
    v = wires(WIDTH, D_HEAD, (at("token", [ON, OFF]), [0, 1], torch.tensor([[1.0, 1.0], [-1.0, 1.0]])))
    o = wires(D_HEAD, WIDTH, ([0], at("yes"), 1.0), ([0], at("no"), -1.0), ([1], at("done"), 1.0))
    gpt2_head(model, 0, 1, q=q, k=k, v=v, o=o)
    q = wires(WIDTH, D_HEAD, (at("const"), [0], FIRM), (at("done"), [0], -2 * FIRM))
    v = wires(WIDTH, D_HEAD, (at("token", ON), [0], 1.0), (at("token", OFF), [0], -1.0))
    o = wires(D_HEAD, WIDTH, ([0], at("yes"), 0.75), ([0], at("no"), -0.75))
    gpt2_head(model, 1, 2, q=q, k=k, v=v, o=o)
    return model


def _cancel() -> GPT2LMHeadModel:
    model = _skeleton()
    for head, weight in ((0, 2.0), (1, -2.0), (3, 1.0)):
        _signal(model, head, place=FIRST, off=-1.0, to=(("yes", weight / 2), ("no", -weight / 2)))
    return model


def _saturated() -> GPT2LMHeadModel:
    model = _skeleton()
    q = wires(WIDTH, D_HEAD, (at("const"), [0], SURE))
    k = wires(WIDTH, D_HEAD, (at("position", LAST), [0], 1.0))
    v = wires(WIDTH, D_HEAD, (at("token", LEFT), [0], 1.0), (at("token", RIGHT), [0], -1.0))
    gpt2_head(model, 0, 1, q=q, k=k, v=v, o=wires(D_HEAD, WIDTH, ([0], at("select"), 1.0)))
    q = wires(WIDTH, D_HEAD, (at("select"), [0], FIRM))
    k = wires(WIDTH, D_HEAD, (at("position", FIRST), [0], 1.0), (at("position", SECOND), [0], -1.0))
    v = wires(WIDTH, D_HEAD, (at("token", ON), [0], 1.0), (at("token", OFF), [0], -1.0))
    o = wires(D_HEAD, WIDTH, ([0], at("yes"), 1.0), ([0], at("no"), -1.0))
    gpt2_head(model, 1, 2, q=q, k=k, v=v, o=o)
    return model


def _rows(probe: str, heads: tuple[str, ...], why: str, **effects: float | int) -> tuple[Expected, ...]:
    """One row a method; an effect of 0 is a miss."""
    methods: dict[str, Method] = {
        "denoise": "denoise",
        "noise": "noise",
        "zero": "zero",
        "at_corrupt": "attribute-denoise",
        "at_clean": "attribute-noise",
    }
    return tuple(
        Expected(probe, methods[name], heads, float(effect), effect != 0, why) for name, effect in effects.items()
    )


def _pair_key(name: str, role: str, heads: tuple[Expected, ...]) -> AnswerKey:
    planted = (
        Head("L0.H1", role, "reads the first signal into `a`"),
        Head("L0.H2", role, "reads the second signal into `b`"),
    )
    edges = (Edge("L0.H1", "L0.mlp"), Edge("L0.H2", "L0.mlp"), Edge("L0.mlp", "logits"))
    probe = Probe(name, "on on ?", "off off ?", "yes", "no", ("L0.H1", "L0.H2"))
    return AnswerKey(f"planted-{name}", planted, edges, null_heads(LAYERS, HEADS, planted), (probe,), heads)


_ONE, _TWO, _BOTH = ("L0.H1",), ("L0.H2",), ("L0.H1", "L0.H2")
_NEEDS_BOTH = "either signal missing gives nothing; one signal alone gives nothing"
_EITHER = "one signal is enough, so losing one costs nothing"
_AND_KEY = _pair_key(
    "and",
    "and",
    _rows("and", _ONE, _NEEDS_BOTH, denoise=0, noise=-2, zero=-2, at_corrupt=0, at_clean=-2)
    + _rows("and", _TWO, _NEEDS_BOTH, denoise=0, noise=-2, zero=-2, at_corrupt=0, at_clean=-2)
    + _rows("and", _BOTH, "together they are the circuit", denoise=2, noise=-2, zero=-2),
)
_OR_KEY = _pair_key(
    "or",
    "or",
    _rows("or", _ONE, _EITHER, denoise=2, noise=0, zero=0, at_corrupt=2, at_clean=0)
    + _rows("or", _TWO, _EITHER, denoise=2, noise=0, zero=0, at_corrupt=2, at_clean=0)
    + _rows("or", _BOTH, "together they are the circuit", denoise=2, noise=-2, zero=-2),
)
_BACKUP_HEADS = (
    Head("L0.H1", "primary", "writes the signal to the logits and a flag that it has"),
    Head("L1.H2", "backup", "writes 0.75 of the signal where the flag is missing"),
)
_BACKUP_KEY = AnswerKey(
    "planted-backup",
    _BACKUP_HEADS,
    (Edge("L0.H1", "logits"), Edge("L0.H1", "L1.H2.q"), Edge("L1.H2", "logits")),
    null_heads(LAYERS, HEADS, _BACKUP_HEADS),
    (Probe("backup", "on ? ?", "off ? ?", "yes", "no", ("L0.H1",)),),
    _rows(
        "backup",
        _ONE,
        "the flag stays, the signal moves; zeroed, the backup steps in",
        denoise=4,
        noise=-4,
        zero=-0.5,
        at_corrupt=4,
        at_clean=-4,
    )
    + _rows("backup", ("L1.H2",), "asleep in both runs", denoise=0, noise=0, zero=0, at_corrupt=0, at_clean=0)
    + _rows("backup", ("L0.H1", "L1.H2"), "with both gone nothing is left", zero=-2),
)
_CANCEL_HEADS = (
    Head("L0.H0", "positive", "writes twice the signal"),
    Head("L0.H1", "negative", "writes minus twice the signal"),
    Head("L0.H3", "carrier", "writes the signal"),
)
_LINEAR = "the logits are linear in z, so every method is exact"
_CANCEL_KEY = AnswerKey(
    "planted-cancel",
    _CANCEL_HEADS,
    tuple(Edge(head.site, "logits") for head in _CANCEL_HEADS),
    null_heads(LAYERS, HEADS, _CANCEL_HEADS),
    (Probe("cancel", "on ? ?", "off ? ?", "yes", "no", ("L0.H0", "L0.H1", "L0.H3")),),
    _rows("cancel", ("L0.H0",), _LINEAR, denoise=4, noise=-4, zero=-2, at_corrupt=4, at_clean=-4)
    + _rows("cancel", ("L0.H1",), _LINEAR, denoise=-4, noise=4, zero=2, at_corrupt=-4, at_clean=4)
    + _rows("cancel", ("L0.H3",), _LINEAR, denoise=2, noise=-2, zero=-1, at_corrupt=2, at_clean=-2)
    + _rows("cancel", ("L0.H0", "L0.H1"), "they cancel when moved together", denoise=0, noise=0, zero=0),
)
_SATURATED_HEADS = (
    Head("L0.H1", "selector", "says which signal is asked for"),
    Head("L1.H2", "reader", "looks at that signal with a saturated softmax and writes it to the logits"),
)
_SATURATED_KEY = AnswerKey(
    "planted-saturated",
    _SATURATED_HEADS,
    (Edge("L0.H1", "L1.H2.q"), Edge("L1.H2", "logits")),
    null_heads(LAYERS, HEADS, _SATURATED_HEADS),
    (Probe("saturated", "on off left", "on off right", "yes", "no", ("L0.H1", "L1.H2")),),
    _rows(
        "saturated", _ONE, "the softmax is flat on both sides", denoise=4, noise=-4, zero=-2, at_corrupt=0, at_clean=0
    )
    + _rows("saturated", ("L1.H2",), "linear in z", denoise=4, noise=-4, zero=-2, at_corrupt=4, at_clean=-4),
)

GATES: dict[str, tuple[Callable[[], GPT2LMHeadModel], AnswerKey]] = {
    "planted-and": (_and, _AND_KEY),
    "planted-or": (_or, _OR_KEY),
    "planted-backup": (_backup, _BACKUP_KEY),
    "planted-cancel": (_cancel, _CANCEL_KEY),
    "planted-saturated": (_saturated, _SATURATED_KEY),
}


def build(name: str) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """The model and its tokenizer."""
    return GATES[name][0](), tokenizer(WORDS)
