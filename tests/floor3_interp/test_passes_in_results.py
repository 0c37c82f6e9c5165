"""Statistics, gradients, importance, kinds of heads, tables and pages of layers that run several times."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from looped import HEADS, WORDS, AtCall, Universal, albert, looped_llama, outs, put_heads
from torch import Tensor

import interp
from interp.heads import head_circuits
from interp.hooks.head_names import columns_of, head_name, head_of, head_place, layer_index, layer_name, stretch
from interp.hooks.sites import LayerPass, pass_of

pytestmark = pytest.mark.families


def metric(logits: Tensor, inputs: Any) -> Tensor:
    return logits[:, -1, 5] - logits[:, -1, 9]


def prompts(m: Any) -> tuple[Any, Any]:
    ids = torch.randint(3, WORDS, (3, 8))
    other = ids.clone()
    other[:, 4] = (other[:, 4] + 3) % 30 + 5
    return m.prepare({"input_ids": ids}), m.prepare({"input_ids": other})


def universal(**how: Any) -> Any:
    ids = torch.randint(3, WORDS, (1, 6))
    module = Universal(**how).eval()
    return interp.attach(module, example={"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def said(m: Any, x: Any) -> Tensor:
    with torch.no_grad():
        made = m.module(**x.kwargs)
    return metric(made if torch.is_tensor(made) else made.logits, x)


def test_statistics_of_a_pass_are_those_of_its_pattern() -> None:
    m = interp.attach(albert(layers=4, groups=2))
    x, _ = prompts(m)
    stats = m.attention(x, stats=["entropy", "received"])
    patterns = m.run(x, record="L*.pattern")
    for site in m.sites("L*.pattern"):
        p = patterns[site].double()
        layer = layer_name(site)
        assert torch.allclose(stats.at(layer, "entropy").double(), -(p * p.log()).sum(-1), atol=1e-5)
        assert torch.allclose(stats.at(layer, "received").double(), p.sum(2), atol=1e-5)
    some = m.attention(x, stats=["entropy"], heads="L1@1.H2").at("L1@1.H2", "entropy")
    assert torch.allclose(some.flatten(), stats.at("L1@1", "entropy")[:, 2].flatten(), atol=1e-6)


@pytest.mark.parametrize("kind", ["albert", "universal", "llama"])
def test_gradients_and_estimates_of_a_pass(kind: str) -> None:
    """By hand: z of the third pass is a leaf that is added to what the projection reads then."""
    m = universal() if kind == "universal" else interp.attach(albert(layers=4) if kind == "albert" else looped_llama())
    x, y = prompts(m)
    out = outs(m.module)[0]
    with AtCall(out) as there:
        said(m, y)
    with AtCall(out) as here:
        said(m, x)
    leaf = torch.zeros_like(here.seen[2]).requires_grad_()
    with AtCall(out, lambda z: z + leaf, calls=[2]):
        made = m.module(**x.kwargs)
    score = metric(made if torch.is_tensor(made) else made.logits, x)
    (slope,) = torch.autograd.grad(score.sum(), leaf)
    tape = m.run(x, record=["L0@2.z", "logits"], grad=True)
    assert torch.allclose(tape.grad(metric)["L0@2.z"].flatten(-2), slope, atol=1e-5)
    found = interp.attribute(m, base=x, source=y, metric=metric, sites="L0@2.H*.z", method="atp")
    by_head = (slope * (there.seen[2] - here.seen[2])).unflatten(-1, (HEADS, -1)).sum((1, 3))
    assert torch.allclose(found.values, by_head.T.double(), atol=1e-4)
    assert list(found.sites) == [f"L0@2.H{head}.z" for head in range(HEADS)]


def test_importance_of_a_pass_is_what_zeroing_it_there_loses() -> None:
    m = interp.attach(albert(layers=3))
    x, y = prompts(m)
    found = interp.importance(m, x, by=["zero", "gradient", "entropy"], metric=metric, source=y)
    zero, plain = found.measure("zero"), said(m, x)
    for n, site in enumerate(found.sites):
        place = head_place(site)
        with AtCall(outs(m.module)[0], put_heads(0.0, [place.head]), calls=[pass_of(place.layer) or 0]):
            lost = plain - said(m, x)
        assert torch.allclose(zero.values[n], lost.double(), atol=1e-4), site
    frame = found.to_frame()
    assert {"layer", "pass", "head"} <= set(frame.columns)
    assert set(frame["layer"]) == {0}
    assert set(frame["pass"]) == {0, 1, 2}


def test_kinds_circuits_and_sinks_name_passes() -> None:
    m = universal(blocks=2, loops=2)
    x, _ = prompts(m)
    order = ["L0@0", "L1@0", "L0@1", "L1@1"]
    sinks = interp.sinks(m, x)
    assert list(dict.fromkeys(map(layer_name, sinks.sites))) == order
    assert sinks.outliers(fence=0.0, times=0.0)["received"].notna().any()
    circuits = head_circuits(m)
    v = circuits.composition["v"]
    names = [head_of(site) for site in circuits.sites]
    at = {name: n for n, name in enumerate(names)}
    assert bool(v[at["L1@0.H0"], at["L0@1.H0"]])
    assert not bool(v[at["L0@1.H0"], at["L1@0.H0"]])
    card = interp.head(m, "L0@1.H2", x)
    assert "L0@1.H2" in repr(card)
    with pytest.raises(interp.InterpError, match=r"more than one head: name one, such as 'L0@0\.H0'"):
        interp.head(m, "L0.H2", x)


def test_tables_maps_and_pages_have_a_row_for_each_pass(tmp_path: Path) -> None:
    m = universal(loops=3)
    x, y = prompts(m)
    effects = interp.patch(m, base=x, source=y, metric=metric, sites="L*.H*.z")
    frame = effects.to_frame()
    assert frame["layer"].tolist() == [0] * 12
    assert frame["pass"].tolist() == [n for n in range(3) for _ in range(HEADS)]
    again = interp.open(effects.save(tmp_path / "effects"))
    assert again.sites == effects.sites
    assert torch.equal(again.values, effects.values)
    sinks = interp.sinks(m, x)
    assert list(sinks.plot().data[0].y) == ["0@0", "0@1", "0@2"]
    assert '"0@2"' in interp.explore(m, x).save(tmp_path / "page.html").read_text()
    interp.report(m, [effects], out=tmp_path / "report")
    run = json.loads((tmp_path / "report" / "run.json").read_text())
    assert run
    rows = (tmp_path / "report" / "heads.csv").read_text().splitlines()
    assert len([row for row in rows if re.search(r"\bL0@\d\.H\d\b", row)]) == 12


def test_names_of_passes_are_read_and_written() -> None:
    place = head_place("vision.L0@7.H3.z")
    assert place == ("vision", LayerPass(0, 0, 7), 3)
    assert head_name(*place) == "vision.L0@7.H3"
    assert layer_name("L0@7.H3") == "L0@7"
    assert layer_index("0@7") == LayerPass(9, 0, 7)
    assert layer_index(5) == 5
    assert stretch([LayerPass(1, 0, 1), LayerPass(2, 0, 2)]) == "0@1-2"
    assert stretch([LayerPass(1, 0, 1), LayerPass(2, 1, 1)]) is None
    assert stretch([2, 3, 4]) == "2-4"
    assert columns_of([3, None]) == {"layer": [3, None]}
    assert columns_of([LayerPass(4, 1, 2), LayerPass(5, 2)]) == {"layer": [1, 2], "pass": [2, None]}
