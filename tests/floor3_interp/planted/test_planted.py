"""Planted models do what their keys say; the keys were worked out first, the numbers come from plain torch hooks."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch

import interp.planted
from interp.kernels.errors import InterpError
from interp.planted import GATES, NAMES, build, key
from interp.planted import decoder as planted_decoder
from interp.planted.answers import AnswerKey, Expected, Probe
from interp.planted.oracle import changed, difference, inputs, locate, put, record, zero

TOLERANCE = 5e-5


@cache
def built(name: str):
    """One model for all the tests that leave it as it is."""
    return build(name)


def sites(answers: AnswerKey) -> list[str]:
    return [*(head.site for head in answers.heads), *answers.null]


def observe(name: str, probe: Probe):
    """Both runs: model, (metric, z, gradient) at clean and corrupt, and a function that patches either."""
    model, processor = built(name)
    clean, corrupt = inputs(processor, probe)
    runs = [
        record(model, sites(key(name)), lambda kwargs=kwargs: difference(model, processor, probe, kwargs))
        for kwargs in (clean, corrupt)
    ]

    def patched(changes, *, side):
        with changed(model, changes), torch.no_grad():
            return difference(model, processor, probe, (clean, corrupt)[side]).item()

    return runs[0], runs[1], patched


@pytest.mark.parametrize("name", NAMES)
def test_the_probes_are_answered(name):
    model, processor = built(name)
    for probe in key(name).probes:
        clean, corrupt = inputs(processor, probe)
        assert {k: v.shape for k, v in clean.items()} == {k: v.shape for k, v in corrupt.items()}
        with torch.no_grad():
            assert difference(model, processor, probe, clean) > 0.9
            assert difference(model, processor, probe, corrupt) < -0.9


@pytest.mark.parametrize("name", [name for name in NAMES if name not in GATES])
def test_denoising_finds_the_planted_heads_first_and_nulls_do_nothing(name):
    for probe in key(name).probes:
        clean, corrupt, patched = observe(name, probe)
        total = clean[0] - corrupt[0]
        effect = {s: (patched({s: put(clean[1][s])}, side=1) - corrupt[0]) / total for s in sites(key(name))}
        ranked = sorted(effect, key=lambda s: -abs(effect[s]))
        assert set(ranked[: len(probe.heads)]) == set(probe.heads)
        assert all(effect[s] == pytest.approx(1.0, abs=0.01) for s in probe.heads)
        assert all(abs(effect[s]) < 1e-3 for s in sites(key(name)) if s not in probe.heads)
        assert all(effect[s] == 0.0 for s in key(name).null)


@pytest.mark.parametrize("name", NAMES)
def test_null_heads_look_alive_and_change_nothing_bit_for_bit(name):
    model, processor = built(name)
    probe = key(name).probes[0]
    clean, _ = inputs(processor, probe)
    with torch.no_grad():
        before = model(**clean).logits
        _, z, _ = record(model, key(name).null, lambda: difference(model, processor, probe, clean))
        assert all(z[site].abs().max() > 1e-3 for site in key(name).null)
        with changed(model, dict.fromkeys(key(name).null, zero)):
            assert torch.equal(model(**clean).logits, before)
        with changed(model, {site: lambda z: 7 * z + 3 for site in key(name).null}):
            assert torch.equal(model(**clean).logits, before)


@pytest.mark.parametrize("name", GATES)
def test_every_method_reports_what_was_worked_out(name):
    (probe,) = key(name).probes
    clean, corrupt, patched = observe(name, probe)
    for expected in key(name).expected:
        got = measure(expected, clean, corrupt, patched)
        assert got == pytest.approx(expected.effect, abs=TOLERANCE), expected
        assert expected.finds == (abs(got) > TOLERANCE), expected


def measure(expected: Expected, clean, corrupt, patched) -> float:
    """One row of the key, by patching or by activation difference times gradient."""
    if expected.method == "denoise":
        return patched({s: put(clean[1][s]) for s in expected.heads}, side=1) - corrupt[0]
    if expected.method == "noise":
        return patched({s: put(corrupt[1][s]) for s in expected.heads}, side=0) - clean[0]
    if expected.method == "zero":
        return patched(dict.fromkeys(expected.heads, zero), side=0) - clean[0]
    base, source = (corrupt, clean) if expected.method == "attribute-denoise" else (clean, corrupt)
    return sum(((source[1][s] - base[1][s]) * base[2][s]).sum().item() for s in expected.heads)


@pytest.mark.parametrize(("steps", "worth"), [(10, 24.0), (9, 0.0)])
def test_integrated_gradients_through_a_saturated_softmax_depend_on_hitting_the_middle(steps, worth):
    name = "planted-saturated"
    model, processor = built(name)
    (probe,) = key(name).probes
    clean, corrupt = inputs(processor, probe)
    ends = [
        record(model, ["L0.H1"], lambda kw=kw: difference(model, processor, probe, kw))[1] for kw in (clean, corrupt)
    ]
    step = ends[0]["L0.H1"] - ends[1]["L0.H1"]
    total = 0.0
    for k in range(1, steps + 1):
        point = (ends[1]["L0.H1"] + step * k / steps).requires_grad_()
        with changed(model, {"L0.H1": put(point)}):
            value = difference(model, processor, probe, corrupt)
        total += (torch.autograd.grad(value, point)[0] * step).sum().item() / steps
    assert total == pytest.approx(worth, abs=0.01)


def patterns(text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [position] and attention [layer, head, query, key] of the decoder, eager."""
    model, tokenizer = built("planted-decoder")
    model.set_attn_implementation("eager")
    ids = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        return ids["input_ids"][0], torch.cat(model(**ids, output_attentions=True).attentions)


def repeated(seed: int = 0, length: int = 25) -> str:
    return " ".join(random.Random(seed).sample(planted_decoder.WORDS, length) * 2)


def best(score: torch.Tensor) -> list[str]:
    order = score.flatten().argsort(descending=True).tolist()
    return [f"L{i // score.shape[1]}.H{i % score.shape[1]}" for i in order]


def test_role_scores_put_the_head_of_the_role_first():
    ids, pattern = patterns(repeated())
    n, second = len(ids), torch.arange(26, 51)
    previous = pattern[..., torch.arange(1, n), torch.arange(n - 1)].mean(-1)
    duplicate = pattern[..., second, second - 25].mean(-1)
    induction = pattern[..., second, second - 24].mean(-1)
    first = pattern[..., 1:, 0].mean(-1)
    assert best(previous)[0] == "L0.H1"
    assert best(duplicate)[0] == "L0.H2"
    assert best(induction)[0] == "L1.H4"
    assert best(first)[0] == "L0.H3"
    assert torch.equal(pattern[0, 3, 1:, 0], torch.ones(n - 1))


def test_heads_that_find_nothing_rest_on_the_first_position():
    """Scores of 10 and 16 above everything else: at most 60 e^-9.8 of the weight goes astray."""
    _, pattern = patterns(" ".join(random.Random(4).sample(planted_decoder.WORDS, 60)))
    for layer, head in ((0, 2), (1, 2), (1, 4)):
        assert pattern[layer, head, 1:, 0].min() > 0.996


def test_retrieval_looks_at_the_value_and_only_at_the_question():
    ids, pattern = patterns("fox = apple , lake = stone , hill = moon , lake =")
    head = pattern[1, 2]
    assert head[-1, 7] > 0.99
    other = [i for i in range(1, len(ids)) if ids[i] != ids[-1]]
    assert head[other, 0].min() > 0.99


def test_repeats_are_continued_over_the_whole_context():
    model, tokenizer = built("planted-decoder")
    ids = tokenizer(repeated(1, 64) + " " + repeated(1, 63), return_tensors="pt")
    with torch.no_grad():
        said = model(**ids).logits[0].argmax(-1)
    wanted = ids["input_ids"][0]
    assert wanted.shape == (255,)
    assert torch.equal(said[65:127], wanted[66:128])


def test_the_sink_is_silent_until_it_is_moved():
    model, tokenizer = build("planted-decoder")
    ids = tokenizer(repeated(2), return_tensors="pt")
    static = tokenizer("static", add_special_tokens=False)["input_ids"][0]
    attention = model.transformer.h[0].attn
    here = slice(3 * planted_decoder.D_HEAD, 4 * planted_decoder.D_HEAD)
    with torch.no_grad():
        _, z, _ = record(model, ["L0.H3"], lambda: model(**ids).logits[0, -1, static])
        assert z["L0.H3"].abs().max() < 1e-8
        before = model(**ids).logits[0, -1, static].item()
        attention.c_attn.weight[:, here] = 0
        assert model(**ids).logits[0, -1, static].item() - before == pytest.approx(12 * 50 / 51, abs=1e-3)


def test_the_norms_are_linear_and_void():
    model, tokenizer = built("planted-decoder")
    ids = tokenizer(repeated(3), return_tensors="pt")
    with torch.no_grad():
        for x in model(**ids, output_hidden_states=True).hidden_states[:-1]:
            assert x.mean(-1).abs().max() < 1e-6
            torch.testing.assert_close(model.transformer.ln_f(x), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_building_twice_gives_the_same_bits_and_leaves_the_generator_alone(name):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, _ = build(name)
    two, _ = build(name)
    assert torch.equal(torch.get_rng_state(), before)
    for (label, a), (_, b) in zip(one.state_dict().items(), two.state_dict().items(), strict=True):
        assert torch.equal(a, b), label


def test_the_lvlm_answers_for_every_place():
    from interp.planted import lvlm
    from interp.planted.pictures import draw

    model, processor = built("planted-lvlm")
    picture = lvlm.PROBES[0].clean_picture
    assert picture is not None
    for place, color in zip(lvlm.PLACES, picture.squares, strict=True):
        x = processor(text=f"<image> what colour is {place}", images=draw(picture), return_tensors="pt")
        with torch.no_grad():
            assert processor.tokenizer.decode([model(**x).logits[0, -1].argmax().item()]) == color


def test_loading_a_part_hides_no_function():
    for name in NAMES:
        build(name)
    assert interp.planted.key is key
    assert interp.planted.build is build
    assert callable(key)


def test_an_unknown_name_is_refused():
    with pytest.raises(InterpError, match="planted-decoder"):
        build("planted-encoder")


def test_the_oracle_finds_every_head():
    for name in NAMES:
        model, _ = built(name)
        for site in sites(key(name)):
            projection, here = locate(model, site)
            assert 0 <= here.start < here.stop <= projection.weight.numel()
