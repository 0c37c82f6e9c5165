"""Replay through two towers: an encoder's patches reach the decoder, an image's the text, and equal full passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from patch_cells import cells_of

import interp
from interp.hooks.drive.questions import Cell, Reads
from interp.hooks.drive.replay import Replay
from interp.hooks.drive.sweep import Sweep
from interp.hooks.examples.example import example
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.sites import Site
from interp.zoo.families import tiny

KINDS = ["resid_pre", "resid_mid", "resid_post", "attn_in", "attn_out", "mlp_in", "mlp_out", "neurons", "q", "k", "v",
         "z", "H1.z", "H1.pattern", "H1.result"]  # fmt: skip


def pair(name: str, *, padding: Any = None, turned: bool = False) -> tuple[interp.Model, Inputs, Inputs]:
    """Two batches: other sounds or texts and other answers for an encoder-decoder, another image for an LVLM."""
    m = interp.attach(tiny(name))
    base, source = (dict(example(m.module, batch=2, length=8, padding=padding, seed=seed)) for seed in (1, 2))
    if "pixel_values" in base:
        source = {**base, "pixel_values": source["pixel_values"]}
    elif padding is not None:
        valid = base["attention_mask"].bool()
        source = {**base, "input_ids": torch.where(valid, source["input_ids"], base["input_ids"])}
    base, source = (source, base) if turned else (base, source)
    return m, m.inputs(base), m.inputs(source)


def sites(m: interp.Model, tower: str) -> list[Site]:
    """Every kind, at one layer after the other."""
    found = []
    for n, kind in enumerate(KINDS):
        component = kind.split(".")[-1]
        having = [layer for layer in m.anatomy.towers[tower].layers[:2] if component not in layer.missing]
        if having:
            found.extend(m.anatomy.sites(f"{tower}.L{having[n % len(having)].index}.{kind}"))
    return found


def asked(m: interp.Model, x: Inputs, y: Inputs, chosen: list[Site]) -> list[Cell]:
    wanted = list(dict.fromkeys(site.whole for site in chosen))
    old, new = m.run(x, record=wanted), m.run(y, record=wanted)

    def where(site: Site) -> list[torch.Tensor]:
        value = old[site.whole]
        return [torch.ones(len(value), value.shape[2 if site.component == "pattern" else 1], dtype=torch.bool)]

    return cells_of(chosen, lambda s: new[s], lambda s: old[s], where)


def agree(m: interp.Model, x: Inputs, cells: list[Cell], reads: Reads, *, driven: bool = True) -> None:
    """The tolerance is some units in the last place of the logits, for as many roundings as two towers make."""
    sweep = Sweep(m.module, m.anatomy, x, m.called_with(x.kwargs))
    answers = {answer.number: answer for answer in sweep.run(cells, reads)}
    assert len(answers) == len(cells)
    moved = 0.0
    for n, cell in enumerate(cells):
        engine = sweep.engine(cell.site.tower)
        assert isinstance(engine, Replay) == driven
        full = sweep.full(cell, reads)
        bound = 256 * torch.finfo(torch.float32).eps * max(1.0, float(full.abs().max()))
        torch.testing.assert_close(
            answers[n].logits, full, atol=bound, rtol=0, msg=f"{cell.site}: {answers[n].logits} is not {full}"
        )
        moved = max(moved, float((answers[n].logits - answers[n].unchanged).abs().max()))
    assert moved > 0.01


def last(x: Inputs) -> Reads:
    return Reads((x.valid * torch.arange(x.length)).amax(1)[:, None], None)


TURNED = {"t5": "cross", "bart": "decoder", "whisper": "encoder"}
TOWERS = [(name, tower, tower == one) for name, one in TURNED.items() for tower in ("encoder", "decoder", "cross")]
"""Each family's towers, one of them in the other direction."""


@pytest.mark.parametrize(("name", "tower", "turned"), TOWERS)
def test_encoder_decoders(name: str, tower: str, turned: bool) -> None:
    m, x, y = pair(name, turned=turned)
    agree(m, x, asked(m, x, y, sites(m, tower)), last(x))


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_padding_in_the_encoder(name: str, padding: str) -> None:
    m, x, y = pair(name, padding=padding)
    for tower in ("encoder", "cross"):
        agree(m, x, asked(m, x, y, sites(m, tower)), last(x))


@pytest.mark.parametrize(
    ("name", "tower", "turned"),
    [("llava", "vision", False), ("llava", "vision", True), ("llava", "text", True), ("internvl", "vision", False),
     ("paligemma", "vision", True), ("qwen2_5_vl", "text", False)],
)  # fmt: skip
def test_images_through_the_text(name: str, tower: str, turned: bool) -> None:
    m, x, y = pair(name, turned=turned)
    agree(m, x, asked(m, x, y, sites(m, tower)), last(x))


def test_the_text_starts_at_the_first_image_token() -> None:
    m, x, y = pair("llava")
    sweep = Sweep(m.module, m.anatomy, x, m.called_with(x.kwargs))
    engine = sweep.engine("vision")
    assert isinstance(engine, Replay)
    assert engine.onward is not None
    seen: list[int] = []
    run = engine.onward.run

    def watched(rows: Any, *rest: Any, **more: Any) -> torch.Tensor:
        seen.extend(row.start for row in rows)
        return run(rows, *rest, **more)

    engine.onward.run = watched  # type: ignore[method-assign]
    list(sweep.run(asked(m, x, y, [Site("vision", 0, "z", (1,))]), last(x)))
    first = x.mask("image").int().argmax(1)
    assert int(first.min()) > 0
    assert set(seen) <= set(first.tolist())


def test_vision_layers_that_nothing_reads_are_exactly_zero_and_are_so_in_full_passes() -> None:
    m, x, y = pair("llava")
    final = max(m.anatomy.towers["vision"].by_index)
    cells = asked(m, x, y, [Site("vision", final, component) for component in ("z", "mlp_out", "resid_pre")])
    sweep, reads = Sweep(m.module, m.anatomy, x, m.called_with(x.kwargs)), last(x)
    nothing = sweep.full(Cell(cells[0].site, cells[0].values, torch.zeros_like(cells[0].where)), reads)
    for answer in sweep.run(cells, reads):
        full = sweep.full(cells[answer.number], reads)
        if cells[answer.number].site.component == "resid_pre":
            assert torch.equal(full, nothing) == (not bool(answer.changed.any()))
        else:
            assert not bool(answer.changed.any())
            assert torch.equal(full, nothing)


def test_tiles_and_windows_are_patched_in_full_passes_and_say_so() -> None:
    m, x, y = pair("llava_next")
    with pytest.warns(UserWarning, match="full forward passes"):
        agree(m, x, asked(m, x, y, [Site("vision", 0, "mlp_out")]), last(x), driven=False)


def test_patches_packed_without_rows_are_recorded_and_refused_by_name() -> None:
    """Qwen2.5-VL's vision tower lays the patches of all images end to end."""
    m, x, y = pair("qwen2_5_vl")
    tape = m.run(x, record=["vision.L0.result", "vision.L0.attn_out"])
    bias = m.module.get_submodule(m.anatomy.towers["vision"].layers[0].out).bias
    torch.testing.assert_close(tape["vision.L0.result"].sum(-2) + bias, tape["vision.L0.attn_out"])
    with pytest.warns(UserWarning, match="full forward"), pytest.raises(interp.InterpError, match="without rows"):
        interp.patch(m, base=x, source=y, metric=lambda logits, _: logits[:, -1, 3], sites="vision.L0.H1.result")
