"""The lens says what the definition says, ends in the model's own answer, and shows a planted head speaking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import attached

import interp
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.examples.example import example
from interp.patching.lenses.said import Lens
from interp.planted import build
from interp.planted.probes import probe_task
from interp.zoo.families import tiny


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "llava", "t5", "vit", "dinov2"])
def test_the_last_layer_says_what_the_model_says(name: str) -> None:
    m = attached(name)
    x = dict(example(m.module, batch=2, seed=3))
    tower = {"llava": "text.", "t5": "decoder."}.get(name, "")
    logits = m.run(x)["logits"]
    last = logits if logits.ndim == 2 else logits[:, -1]
    seen = interp.lens(m, x, sites=f"{tower}L*.resid_post", answers=torch.tensor([1, 1]), top=2)
    logprobs = last.log_softmax(-1)
    torch.testing.assert_close(seen.top_logprobs[-1, :, 0], logprobs.topk(2).values, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(seen.logprob[-1, :, 0], logprobs[:, 1], atol=1e-4, rtol=1e-4)
    assert torch.equal(seen.top[-1, :, 0], logprobs.topk(2).indices)
    assert seen.rank[-1, :, 0].tolist() == (logprobs > logprobs[:, 1:2]).sum(1).tolist()
    assert not torch.equal(seen.logprob[0], seen.logprob[-1])


def test_layers_and_norms_are_those_of_the_definition() -> None:
    m = attached("gpt2")
    model: Any = m.module
    x = dict(example(m.module, batch=2, seed=3))
    tape = m.run(x, record=["L0.resid_post", "L1.resid_post"])
    early, late = (tape[f"L{n}.resid_post"].double() for n in (0, 1))
    gain, shift = (p.detach().double() for p in (model.transformer.ln_f.weight, model.transformer.ln_f.bias))
    head, eps = model.lm_head.weight.detach().double(), model.transformer.ln_f.eps

    def sigma(v: torch.Tensor) -> torch.Tensor:
        return (v.var(-1, unbiased=False, keepdim=True) + eps).sqrt()

    centred = early - early.mean(-1, keepdim=True)
    wanted = {
        "final": centred / sigma(early) * gain + shift,
        "frozen": centred / sigma(late) * gain + shift,
        "none": early,
    }
    for norm, normed in wanted.items():
        seen = interp.lens(m, x, sites="L0.resid_post", positions=[2, -1], answers=[[7, 9], 8], norm=norm)
        logprobs = (normed @ head.T).log_softmax(-1)[:, [2, -1]]
        expected = torch.stack([logprobs[0][:, [7, 9]].amax(-1), logprobs[1][:, 8]])
        torch.testing.assert_close(seen.logprob[0].double(), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(seen.top_logprobs[0].double(), logprobs.topk(5).values, atol=1e-4, rtol=1e-4)
    assert seen.positions.tolist() == [[2, x["input_ids"].shape[1] - 1]] * 2


def test_what_parts_say_under_a_held_norm_adds_up_to_the_answer_but_for_the_shift() -> None:
    m = interp.attach(tiny("gpt2"))
    model: Any = m.module
    with torch.no_grad():
        model.transformer.ln_f.bias.normal_()
    x = dict(example(m.module, batch=1, seed=3))
    tape = m.run(x, record=["L1.z", "L1.resid_post"])
    late, norm = tape["L1.resid_post"].double(), model.transformer.ln_f
    scale = (late.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    width = tape["L1.z"].shape[-1]
    out = tape["L1.z"][:, :, 2].double() @ model.transformer.h[1].attn.c_proj.weight.double()[2 * width : 3 * width]
    share = (out - out.mean(-1, keepdim=True)) / scale * norm.weight.double() @ model.lm_head.weight.double().T
    seen = interp.lens(m, x, sites="L1.H2.result", norm="frozen")
    torch.testing.assert_close(
        seen.top_logprobs[0, 0, 0].double(), share[0, -1].log_softmax(-1).topk(5).values, atol=1e-4, rtol=1e-4
    )


def test_a_head_that_speaks_and_heads_that_do_not() -> None:
    m = interp.attach(*build("planted-decoder"))
    task = probe_task("planted-decoder", "induction", model=m)
    seen = interp.lens(m, task.clean, sites="L1.H*.result", answers=[" apple"], norm="frozen", top=1)
    rank = dict(zip(seen.sites, seen.rank[:, 0, 0].tolist(), strict=True))
    assert rank["L1.H4.result"] == 0
    spoken = seen.to_frame().set_index("site")["top"]
    assert spoken["L1.H4.result"][0].strip() == "apple"
    logprob = dict(zip(seen.sites, seen.logprob[:, 0, 0].tolist(), strict=True))
    assert logprob["L1.H4.result"] > -0.1
    assert logprob["L1.H0.result"] < -3


def test_the_answer_arrives_where_it_was_planted_and_comes_back_from_disk(tmp_path: Path) -> None:
    m = interp.attach(*build("planted-lvlm"))
    task = probe_task("planted-lvlm", "question", model=m)
    seen = interp.lens(m, task.clean, sites=["text.embed", "text.L*.resid_post"], answers=[" red"])
    assert seen.rank[-1].item() == 0
    assert bool((seen.logprob[:-1] < -1).all())
    assert seen.logprob[-1].item() > -0.1
    assert "red" in repr(seen)
    assert seen.plot().data[0].z.shape == tuple(seen.logprob.mean(1).shape)
    again = Lens.load(seen.save(tmp_path))
    assert again.to_frame().equals(seen.to_frame())


def test_what_has_no_meaning_is_refused() -> None:
    m = attached("gpt2")
    x = dict(example(m.module, batch=2, seed=3))
    with pytest.raises(SiteError, match="residual's width"):
        interp.lens(m, x, sites="L0.z")
    with pytest.raises(SiteError, match="at least one"):
        interp.lens(m, x, sites=[])
    with pytest.raises(InputsError, match="each of the 2 rows"):
        interp.lens(m, x, answers=[3])
    with pytest.raises(InputsError, match="top is"):
        interp.lens(m, x, top=0)
    with pytest.raises(InputsError, match="no answer to plot"):
        interp.lens(m, x).plot()
    llava = attached("llava")
    with pytest.raises(SiteError, match="reads the tower 'text'"):
        interp.lens(llava, dict(example(llava.module, batch=1, seed=3)), sites="vision.L0.resid_post")
