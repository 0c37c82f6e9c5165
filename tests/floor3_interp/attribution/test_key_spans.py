"""Key spans: the two closed forms against the pattern itself, and against making the span invisible."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import interp
from interp.attribution.key_spans import key_spans
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.examples.example import example
from interp.metrics.shipped import LogitDifference
from interp.planted import build, key
from interp.zoo.families import tiny


def reading(logits: torch.Tensor, inputs: Any) -> torch.Tensor:
    return logits[:, -1, 7] - 2 * logits[:, -1, 12]


@pytest.mark.parametrize(("name", "padding"), [("llama", None), ("llama", "left"), ("gemma2", None), ("gpt_oss", None)])
@pytest.mark.parametrize("form", ["knockout", "log_weight"])
def test_both_forms_are_what_the_pattern_says(name: str, padding: str | None, form: str) -> None:
    m = interp.attach(tiny(name))
    x = m.inputs(example(m.module, batch=2, length=7, padding=padding))
    scattered = torch.zeros(2, 7, dtype=torch.bool)
    scattered[:, [4, 6]] = True
    spans = {"run": slice(3, 5), "scattered": scattered} if padding else {"a": slice(0, 2), "b": slice(2, 5)}
    found = key_spans(m, x, metric=reading, spans=spans, heads="L0-1", form=form)
    assert set(found.impl) == {"merge" if name == "llama" and not padding else "rows"}
    tape = m.run(x, record=["L0-1.z", "L0-1.v", "L0-1.pattern"], grad=True)
    slopes = tape.grad(reading, ["L0.z", "L1.z"])
    for layer in (0, 1):
        a = tape[f"L{layer}.pattern"].detach().double()
        v = tape[f"L{layer}.v"].detach().double().repeat_interleave(2, 2).permute(0, 2, 1, 3)
        g = slopes[f"L{layer}.z"].double().permute(0, 2, 1, 3) @ v.transpose(-1, -2)
        for n, spec in enumerate(spans.values()):
            member = x.mask(spec)[:, None, None, :].double()
            kept = a * (1 - member)
            if form == "knockout":  # the fall of the metric, to first order in z, when the rest is renormalised
                sink = 1 - a.sum(-1, keepdim=True) if name == "gpt_oss" else 0.0
                rest = kept.sum(-1, keepdim=True) + sink
                each = torch.where(rest > 0, (a - kept / rest.clamp(min=1e-30)) * g, 0.0).sum(-1)
            else:  # the derivative by a bias b on the span: d a / d b = a (member - w)
                w = (a * member).sum(-1, keepdim=True)
                each = (a * (member - w) * g).sum(-1)
            torch.testing.assert_close(found.values[layer, :, n].T, each.sum(-1), atol=2e-5, rtol=1e-3)


def test_knocking_a_span_out_moves_the_metric_by_what_was_said_where_the_model_is_linear() -> None:
    m, probe = interp.attach(*build("planted-decoder")), key("planted-decoder").probe("induction")
    right, wrong = (m.tokenizer.convert_tokens_to_ids(word) for word in (probe.answer, probe.wrong))
    metric = LogitDifference(((right,),), ((wrong,),))
    x = m.inputs(probe.clean)
    found = key_spans(m, x, metric=metric, spans={"answer": [2], "rest": slice(3, 6)}, heads="L1")
    plain = float(metric(m.run(x)["logits"], x))
    for n, keys in enumerate(([2], slice(3, 6))):
        without = m.run(x, edits=[interp.MaskKeys("L1.H4", keys=keys)])["logits"]
        assert plain - float(metric(without, x)) == pytest.approx(float(found.values[0, 4, n]), abs=1e-3)
    array = found.to_array()
    assert array.dims == ("layer", "head", "span")
    assert float(array.sel(layer="L1", head=4, span="answer")) > 10
    assert "L1.H4 on 'answer'" in repr(found)
    assert len(found.to_frame()) == 12


def test_what_has_no_pattern_or_form_is_refused() -> None:
    m = interp.attach(tiny("gptj"))
    x = {"input_ids": torch.randint(5, 90, (1, 5))}
    with pytest.raises(ModelError, match="attention call is not seen"):
        key_spans(m, x, metric=reading, spans={"a": [1]})
    with pytest.raises(InputsError, match="form is one of"):
        key_spans(interp.attach(tiny("llama")), x, metric=reading, spans={"a": [1]}, form="shapley")
