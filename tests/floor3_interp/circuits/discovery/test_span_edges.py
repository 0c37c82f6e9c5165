"""Edges at spans: each score is the slope of reading more there and seeing it from there; sums are EAP's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from edge_oracle import LENGTH, Oracle, Wide, asked, attached, difference
from torch import Tensor

import interp
from interp.circuits.discovery.span_edges import run
from interp.planted.probes import probe_task


def spanned(rows: int, *, first: int = 2) -> dict[str, Tensor]:
    """Tokens 0 to `first` are "start", the last is "end", the rest is between."""
    places = torch.arange(LENGTH)
    return {"start": (places < first).expand(rows, -1), "end": (places == LENGTH - 1).expand(rows, -1)}


class SpanOracle(Oracle):
    """Reads more at some tokens only, and lets some queries alone see it."""

    def __init__(self, *args: Any, at: Tensor, seen: Tensor | None = None) -> None:
        super().__init__(*args)
        self.at, self.seen = at[..., None], seen

    def more(self, sender: str, size: float) -> Tensor:
        return super().more(sender, size) * self.at

    def read(self, receiver: str, more: Tensor) -> Tensor:
        if self.seen is None:
            return super().read(receiver, more)
        head, _, part = receiver.rpartition(".")
        layer = head.split(".K")[0].split(".H")[0]
        where, site = f"{layer}.resid_pre", f"{head}.{part[0]}"
        moved = self.m.run(self.base, record=[site], edits=[interp.Set(where, self.plain[where] + more)])
        z = f"{layer}.z"
        plain = self.m.run(self.base, record=[z])[z]
        changed = self.m.run(self.base, record=[z], edits=[interp.Set(site, moved[site])])[z]
        return self.run([interp.Set(z, torch.where(self.seen[..., None, None], changed, plain))])


@pytest.mark.parametrize("name", ["llama", "vit"])
def test_a_score_is_the_slope_of_reading_more_there_and_seeing_it_from_there(name: str) -> None:
    m, base, source = asked(name)
    rows, length = m.run(base, record="embed")["embed"].shape[:2]
    places = torch.arange(length).expand(rows, -1)
    spans = {"start": places < 2, "end": places == length - 1}
    with Wide():
        e = interp.circuits.span_edges(m, base=base, source=source, metric=difference, spans=spans)
        assert e.spans == ("start", "end", "rest")
        masks = [*spans.values(), ~(spans["start"] | spans["end"])]
        for s, t in ((0, 1), (2, 2)):
            for part in ("k_in", "v_in"):
                oracle = SpanOracle(m, base, source, at=masks[s], seen=masks[t])
                n = e.whole().number(f"L0.H1->L1.K0.{part}")
                expected = oracle.slope("L0.H1", f"L1.K0.{part}")
                torch.testing.assert_close(e.values[n, s, t], expected, atol=1e-8, rtol=1e-6)
        for edge in ("L0.H2->L1.H1.q_in", "embed->L0.mlp_in", "L0.mlp_write->logits"):
            n, (sender, receiver) = e.whole().number(edge), edge.split("->")
            expected = SpanOracle(m, base, source, at=masks[2]).slope(sender, receiver)
            torch.testing.assert_close(e.values[n, 2, 2], expected, atol=1e-8, rtol=1e-6)
            assert not bool(e.values[n, 0, 1].any())
    plain = interp.edges(m, base=base, source=source, metric=difference, method="eap")
    torch.testing.assert_close(e.whole().values, plain.values, atol=1e-6, rtol=1e-5)


def test_prompts_of_unequal_length_share_the_scores_of_their_spans() -> None:
    """The second row is the first one with padding before it; spans follow the tokens."""
    m = attached("llama")
    ids, other = (torch.randint(5, 90, (1, LENGTH)) for _ in range(2))
    mask = torch.tensor([[1] * LENGTH + [0, 0], [0, 0] + [1] * LENGTH])
    pad = torch.full((1, 2), 7)
    both, more = (
        {"input_ids": torch.cat([torch.cat([x, pad], 1), torch.cat([pad, x], 1)]), "attention_mask": mask}
        for x in (ids, other)
    )
    start = torch.zeros_like(mask, dtype=torch.bool)
    start[0, :2] = start[1, 2:4] = True

    def read(logits: Tensor, _: Any) -> Tensor:
        last = torch.stack([logits[0, LENGTH - 1], logits[1, -1]])
        return last[:, 0] - last[:, 1]

    e = interp.circuits.span_edges(m, base=both, source=more, metric=read, spans={"start": start})
    torch.testing.assert_close(e.values[..., 0], e.values[..., 1], atol=1e-6, rtol=1e-5)


def test_a_planted_copy_crosses_from_its_token_to_the_last() -> None:
    """cancel: three heads read the first word from every token on, and the logits read the last."""
    m = interp.load("zoo:planted-cancel")
    task = probe_task("planted-cancel", model=m)
    spans = {"word": [1], "end": [3]}
    how: dict[str, Any] = {"base": task.corrupt, "source": task.clean, "metric": task.metric, "spans": spans}
    e = interp.circuits.span_edges(m, **how)
    found = {(r["edge"], r["at"], r["seen_from"]): r["score"] for r in e.top(6).to_dict("records")}
    wanted = {("embed->L0.K0.v_in", "word", "end"): 4.0, ("embed->L0.K1.v_in", "word", "end"): -4.0,
              ("embed->L0.K3.v_in", "word", "end"): 2.0, ("L0.H0->logits", "end", "end"): 4.0,
              ("L0.H1->logits", "end", "end"): -4.0, ("L0.H3->logits", "end", "end"): 2.0}  # fmt: skip
    assert found == pytest.approx(wanted, abs=1e-3)
    f = {"base": task.clean, "source": task.corrupt, "metric": task.metric, "spans": spans}
    assert run(m, e.circuit(6), **f) == pytest.approx(1, abs=1e-4)
    elsewhere = e.circuit(6).roll(1, dims=2)  # the same edges at other tokens
    assert run(m, elsewhere, **f) == pytest.approx(0, abs=1e-4)


def test_a_result_is_saved_and_wrong_schemas_are_refused(tmp_path: Path) -> None:
    m, base, source = asked("gpt2")
    how: dict[str, Any] = {"base": base, "source": source, "metric": difference}
    e = interp.circuits.span_edges(m, **how, spans=spanned(2))
    e.save(tmp_path / "e")
    back = interp.open(tmp_path / "e")
    assert torch.equal(back.values, e.values)
    assert back.spans == e.spans
    assert e.top(1).iloc[0]["edge"] in repr(e)
    for spans in ({"a": [0, 1], "b": [1]}, {"rest": [0]}):
        with pytest.raises(interp.InterpError, match="do not overlap"):
            interp.circuits.span_edges(m, **how, spans=spans)
    with pytest.raises(interp.InterpError, match="edges at spans here"):
        e.circuit(0)
    with pytest.raises(interp.InterpError, match="has shape"):
        run(m, e.circuit(2), **how, spans={"a": [0]})
