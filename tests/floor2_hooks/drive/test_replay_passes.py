"""Patches in one pass of a layer, by every engine, against a naive loop that counts calls by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from looped import HEADS, WORDS, AtCall, Halting, Recurrent, Universal, albert, blocks, looped_llama, outs, put_heads
from torch import Tensor

import interp
from interp.hooks.drive.recording import CannotDrive
from interp.hooks.drive.sweep import Sweep
from interp.metrics import At
from interp.patching import direct_effect, knockout, path_patch

pytestmark = pytest.mark.families

DRIVEN: dict[str, Callable[[], Any]] = {
    "albert": lambda: albert(layers=4),
    "albert, two groups": lambda: albert(layers=4, groups=2),
    "albert, two layers a group": lambda: albert(layers=3, inner=2),
    "universal": lambda: Universal(blocks=2, loops=3),
    "llama": looped_llama,
}
IN_FULL: dict[str, Callable[[], Any]] = {"recurrent": Recurrent, "halting": Halting}


def metric(logits: Tensor, inputs: Any) -> Tensor:
    return logits[:, -1, 5] - logits[:, -1, 9]


def pair(m: Any) -> tuple[Any, Any]:
    """Three prompts, one of them padded on the left, and the same with another token in the middle."""
    ids, mask = torch.randint(3, WORDS, (3, 8)), torch.ones(3, 8, dtype=torch.long)
    ids[:, 0] = 3
    other = ids.clone()
    other[:, 4] = (other[:, 4] + 3) % 30 + 5
    if not isinstance(m.module, Halting):  # whose first token says how often it runs
        mask[2, :2] = 0
    at = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if hasattr(m.module, "config") else {}
    return tuple(m.prepare({"input_ids": one * mask, "attention_mask": mask, **at}) for one in (ids, other))


def held(make: Callable[[], Any]) -> Any:
    module, ids = make().eval(), torch.full((1, 5), 3)
    return interp.attach(module, example={"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def said(m: Any, x: Any) -> Tensor:
    with torch.no_grad():
        made = m.module(**x.kwargs)
    return metric(made if torch.is_tensor(made) else made.logits, x)


def passes(m: Any) -> list[tuple[str, int, int]]:
    """Spelling, layer and pass of all that runs."""
    found = []
    for site in m.sites("L*.z"):
        number, _, nth = site.removesuffix(".z")[1:].partition("@")
        found.append((site.removesuffix(".z"), int(number), int(nth or 0)))
    return found


def projections(m: Any) -> list[Any]:
    return [m.module.attention.out_proj] if isinstance(m.module, Halting) else outs(m.module)


def naive_heads(m: Any, x: Any, y: Any) -> dict[str, Tensor]:
    """Each head of each pass, patched with what it gave on the other prompts."""
    base, found = said(m, x), {}
    for at, layer, nth in passes(m):
        out = projections(m)[layer]
        with AtCall(out) as other:
            said(m, y)
        for head in range(HEADS):
            with AtCall(out, put_heads(other.seen[nth], [head]), calls=[nth]):
                found[f"{at}.H{head}.z"] = said(m, x) - base
    return found


def agrees(effects: Any, wanted: dict[str, Tensor]) -> None:
    assert list(effects.sites) == list(wanted)
    expected = torch.stack(list(wanted.values())).double()
    assert torch.allclose(effects.values, expected, atol=2e-5 * max(1.0, float(expected.abs().max())))
    assert float(expected.abs().max()) > 1e-3


@pytest.mark.parametrize("name", DRIVEN)
def test_patched_heads_of_every_pass_equal_a_naive_loop(name: str) -> None:
    m = held(DRIVEN[name])
    x, y = pair(m)
    wanted = naive_heads(m, x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is driven, and says nothing
        agrees(interp.patch(m, base=x, source=y, metric=metric, sites="L*.H*.z"), wanted)
    assert not m.handles()


@pytest.mark.parametrize("name", IN_FULL)
def test_loops_that_cannot_be_driven_go_in_full_passes(name: str) -> None:
    m = held(IN_FULL[name])
    x, y = pair(m)
    if (
        name == "halting"
    ):  # torch's own attention never calls its projection: what the loop is by hand is in test_passes
        with pytest.warns(UserWarning, match="full forward passes"):
            effects = interp.patch(m, base=x, source=y, metric=metric, sites="L*.H*.z")
        source = m.run(y, record="L0.z")["L0.z"]
        for n, site in enumerate(effects.sites):
            at, head = site.split(".H")[0], int(site.split(".H")[1][0])
            edit = interp.Set(f"{at}.H{head}.z", source[f"{at}.z"][:, :, [head]])
            wanted = metric(m.run(x, record="logits", edits=[edit])["logits"], x) - said(m, x)
            assert torch.allclose(effects.values[n], wanted.double(), atol=1e-6)
        return
    with pytest.warns(UserWarning, match=r"added between layers 0 and 1@0; .* full forward passes"):
        agrees(interp.patch(m, base=x, source=y, metric=metric, sites="L*.H*.z"), naive_heads(m, x, y))


@pytest.mark.parametrize("name", DRIVEN)
def test_patched_residuals_of_every_pass_and_position_equal_a_naive_loop(name: str) -> None:
    m = held(DRIVEN[name])
    x, y = pair(m)
    base, wanted = said(m, x), {}
    for at, layer, nth in passes(m):
        block = blocks(m.module)[layer]
        with AtCall(block) as other:
            said(m, y)
        for position in (4, 6):

            def put(h: Tensor, new: Tensor = other.seen[nth], position: int = position) -> Tensor:
                h = h.clone()
                h[:, position] = new[:, position]
                return h

            with AtCall(block, put, calls=[nth]):
                wanted[at, position] = said(m, x) - base
    effects = interp.patch(m, base=x, source=y, metric=metric, sites="L*.resid_pre", positions="each")
    frame = effects.to_frame()
    for (at, position), expected in wanted.items():
        row = frame[(frame["site"] == f"{at}.resid_pre") & (frame["position"] == position)]
        assert row["estimate"].item() == pytest.approx(float(expected.mean()), abs=1e-4), (at, position)
    assert max(float(expected.abs().max()) for expected in wanted.values()) > 1e-3


def test_patterns_keys_and_results_of_a_pass_equal_full_passes() -> None:
    """What is driven is what an edited run gives, which is held against hooks by hand in `test_passes.py`."""
    m = held(DRIVEN["albert"])
    x, y = pair(m)
    for sites, record in (("L*.H1.pattern", "L0.pattern"), ("L*.K2.k", "L0.k"), ("L*.H0.result", "L0.result")):
        effects = interp.patch(m, base=x, source=y, metric=metric, sites=sites)
        source = m.run(y, record=record)
        for n, site in enumerate(effects.sites):
            edit = interp.Set(site, source[site])
            wanted = metric(m.run(x, record="logits", edits=[edit])["logits"], x) - said(m, x)
            assert torch.allclose(effects.values[n], wanted.double(), atol=1e-4), site


def test_windows_of_passes_are_spelled_as_sites() -> None:
    m = held(DRIVEN["albert"])
    x, y = pair(m)
    effects = interp.patch(m, base=x, source=y, metric=metric, sites="L*.attn_out", window=2)
    assert list(effects.sites) == ["L0@0-1.attn_out", "L0@1-2.attn_out", "L0@2-3.attn_out"]
    assert effects.to_frame()["pass"].tolist() == [0, 1, 2]
    blocked = knockout(m, x, edges=[(4, -1)], metric=metric, window=2)
    assert list(blocked.sites) == ["L0@0-1.attention", "L0@1-2.attention", "L0@2-3.attention"]
    several = held(DRIVEN["universal"])
    x, y = pair(several)
    effects = interp.patch(several, base=x, source=y, metric=metric, sites="L*.attn_out", window=2)
    assert effects.sites[0] == "L0@0.attn_out + L1@0.attn_out"
    assert effects.to_frame()["component"].tolist() == ["attn_out"] * 5


def test_a_pass_later_in_a_chunk_leaves_the_earlier_ones_alone() -> None:
    """Cells of the first passes are exactly 0 where their tokens are the same, and passes of a driven block are as many
    layers' worth of work."""
    m = held(DRIVEN["albert"])
    x, _ = pair(m)
    effects = interp.patch(m, base=x, source=x, metric=metric, sites="L*.H*.z")
    assert not bool(effects.values.any())
    sweep = Sweep(m.module, m.ready(), x, x.kwargs)
    assert not isinstance(sweep.engine(None), str)


def test_paths_and_direct_effects_know_which_pass_comes_first() -> None:
    m = held(DRIVEN["universal"])
    x, y = pair(m)
    found = path_patch(m, base=x, source=y, metric=metric, senders="L*.H1.result", receivers="L0@1.H2.v_in")
    assert list(found.sites) == ["L0@0.H1.result", "L1@0.H1.result"]
    direct = direct_effect(m, x, metric=metric)
    total = direct.values.sum(0)
    assert torch.isfinite(total).all()
    edges = interp.edges(m, base=x, source=y, metric=metric, method="eap")
    names = {str(site) for site in edges.senders} if hasattr(edges, "senders") else set()
    assert not any("L1@2" in name for name in names if "L1@2.mlp" in name and "L0@1" in name)


def test_post_norm_loops_have_no_edges_and_say_so() -> None:
    m = held(DRIVEN["albert"])
    x, y = pair(m)
    with pytest.raises(interp.InterpError, match="normalises after adding"):
        interp.edges(m, base=x, source=y, metric=metric)
    m = held(Recurrent)
    x, y = pair(m)
    with pytest.raises(CannotDrive, match="added between layers 0 and 1@0"):
        path_patch(m, base=x, source=y, metric=metric, senders="L0.H0.result", receivers="logits")


def test_a_metric_may_read_a_pass() -> None:
    """What the metric reads is there in one pass: cells behind it do nothing, those before it what a loop gives."""
    m = held(DRIVEN["universal"])
    x, y = pair(m)
    reads = At("L0@1.resid_post", lambda values, inputs: values[:, -1].sum(-1))
    with pytest.warns(UserWarning, match="before the end"):
        effects = interp.patch(m, base=x, source=y, metric=reads, sites="L*.H1.z")
    block, out = blocks(m.module)[0], outs(m.module)[0]
    with AtCall(out) as other:
        said(m, y)
    with AtCall(block, side="out") as plain:
        said(m, x)
    with AtCall(out, put_heads(other.seen[0], [1]), calls=[0]), AtCall(block, side="out") as moved:
        said(m, x)
    wanted = (moved.seen[1] - plain.seen[1])[:, -1].sum(-1)
    assert torch.allclose(effects.values[0], wanted.double(), atol=1e-4)
    assert bool(effects.values[0].any())
    assert not bool(effects.values[effects.sites.index("L0@2.H1.z")].any())
