"""The first thing to run: a model whose heads are known, checked, and one head switched off.

The model is planted (`interp/planted`): its weights were set by hand, so the answer key says beforehand which head
copies the word that followed last time. The demo finds what every head does for that prediction by switching each off
in turn.
"""

from __future__ import annotations

import torch
from torch import Tensor

import interp
from interp.hooks.sites import Site
from interp.model import Model
from interp.planted import build, key


def demo() -> str:
    """Attach, check, switch heads off one by one; returns what it found as text."""
    answers = key("planted-decoder")
    model = interp.attach(*build("planted-decoder"))
    probe = answers.probe("induction")
    prompt = model.prepare(probe.clean)
    tokens = [model.tokenizer.convert_tokens_to_ids(word) for word in (probe.answer, probe.wrong)]
    plain = model.run(prompt)["logits"]
    effects = {
        head: _difference(_without(model, prompt, head), tokens) - _difference(plain, tokens) for head in _heads(model)
    }
    known = {head.site: head.does for head in answers.heads}
    ranked = sorted(effects, key=lambda head: -abs(effects[head]))
    found = f"{ranked[0]}, which {known.get(ranked[0], 'nobody planted')}"
    rows = [f"  {head:<8}{effects[head]:+9.3f}   {known.get(head, '')}" for head in ranked[:6]]
    return "\n".join(
        [
            repr(model),
            "",
            str(model.check()),
            "",
            f"Prompt: {probe.clean!r}.",
            f"The model says {probe.answer!r} over {probe.wrong!r} by {_difference(plain, tokens):.2f}.",
            "Switching off one head at a time changes that by:",
            *rows,
            f"The head that matters most is {found}. The answer key expected {', '.join(probe.heads)}.",
        ]
    )


def _heads(model: Model) -> list[str]:
    tower = model.anatomy.tower(None, text="L*.z")
    return [str(Site(None, layer.index, "attention", (head,))) for layer in tower.layers for head in range(layer.heads)]


def _without(model: Model, prompt: interp.Inputs, head: str) -> Tensor:
    return model.run(prompt, edits=[interp.Zero(f"{head}.z")])["logits"]


def _difference(logits: Tensor, tokens: list[int]) -> float:
    right, wrong = logits[0, -1, torch.tensor(tokens)].tolist()
    return right - wrong
