"""Tiny models that many tests stand on, each built once a session, and a question to each kind of model."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import interp
from interp.hooks.examples.example import example
from interp.planted import build, key
from interp.planted.answers import Picture
from interp.planted.pictures import draw
from interp.records import Kind, Trial
from interp.tasks.task import Row, Task
from interp.zoo.families import tiny


@cache
def attached(name: str, dtype: torch.dtype = torch.float32) -> interp.Model:
    """A tiny random model of a family of `interp.zoo.families`. Shared: a test that changes it builds its own."""
    return interp.attach(tiny(name, dtype=dtype))


@cache
def mpt() -> interp.Model:
    """A model whose attention call is not seen, and whose family says where z is and nothing else."""
    torch.manual_seed(0)
    config = transformers.MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=99, max_seq_len=64)
    return interp.attach(transformers.MptForCausalLM(config).eval())


@cache
def planted(name: str) -> interp.Model:
    """A planted model, "planted-vit" and so on. Shared likewise."""
    return interp.attach(*build(name))


def difference(logits: Tensor, inputs: Any) -> Tensor:
    """The first word's logit less the second's, where a model without words has a question."""
    last = logits if logits.ndim == 2 else logits[:, -1]
    return last[:, 0] - last[:, 1]


def _texts() -> Task:
    """What comes after these ids, rather than after those; random weights have an answer too."""
    rows = []
    for row in range(3):
        ids = torch.randint(10, 150, (2, 11), generator=torch.Generator().manual_seed(row)).tolist()
        rows.append(Row(tuple(ids[0]), tuple(ids[0][:4] + ids[1][4:]), (20 + row,), (30 + row,)))
    return Task("ids", tuple(rows))


def _pictures() -> Task:
    """Which colour the marked square has."""
    squares = next(probe for probe in key("planted-vit").probes if probe.clean_picture).clean_picture.squares
    rows = []
    for clean, corrupt in ((5, 9), (0, 3), (10, 6)):
        pair = [draw(Picture(squares, marked=at)) for at in (clean, corrupt)]
        rows.append(
            Row("", "", (f" {squares[clean]}",), (f" {squares[corrupt]}",), image=pair[0], corrupt_image=pair[1])
        )
    return Task("mark", tuple(rows))


def _both() -> Task:
    """Which colour the square at a place has."""
    probe = next(one for one in key("planted-lvlm").probes if one.name == "question")
    squares = probe.clean_picture.squares
    names = [f"{row}{column}" for row in "abcd" for column in range(1, 5)]
    rows = [
        Row(f"<image> what colour is {names[a]}", f"<image> what colour is {names[b]}", (f" {squares[a]}",),
            (f" {squares[b]}",), image=draw(probe.clean_picture), corrupt_image=draw(probe.clean_picture))
        for a, b in ((5, 9), (0, 3), (10, 6))
    ]  # fmt: skip
    return Task("question", tuple(rows))


@cache
def shared(name: str) -> interp.Model:
    """A tiny family ("llama") or a model of the zoo ("zoo:needle"). Shared likewise."""
    if name.startswith("zoo:planted"):
        return planted(name.removeprefix("zoo:"))
    return interp.load(name) if name.startswith("zoo:") else attached(name)


Models = Callable[[str], interp.Model]
"""From a name as `shared` reads it to the model, wherever it lies."""


@cache
def needles(models: Models = shared) -> Task:
    """Needles in short texts, and the model that was trained to find them."""
    return interp.tasks.needle(models("zoo:needle"), n=2, lengths=(32,), depths=(0.5,), whole=True)


def trial(kind: Kind, folder: Path, models: Models = shared) -> Trial:
    """A tiny model of a kind and a question to it."""
    if kind == "encoder-decoder":
        model = models("t5")
        base, source = (model.inputs(dict(example(model.module, batch=3, length=6, seed=seed))) for seed in (1, 2))
        return Trial(kind, model, base, source, difference, "decoder.L*.H*", None, folder, labels=[0, 0, 0],
                     texts=("a text", "another text"))  # fmt: skip
    task, texts = _asked(kind, models)
    return Trial(
        kind, task.model, task.clean, task.corrupt, task.metric, "text.L*.H*" if kind == "lvlm" else "L*.H*",
        needles(models) if kind == "decoder" else task, folder, labels=[row[0] for row in task.answer_ids],
        reads="cls" if kind == "vit" else "last", task=task, texts=texts,
    )  # fmt: skip


def _asked(kind: Kind, models: Models) -> tuple[Task, tuple[str, ...]]:
    if kind == "decoder":
        return _texts().on(models("llama")), ("note : lisbon amber violin .", "the river is wide .")
    if kind == "vit":
        return _pictures().on(models("zoo:planted-vit")), ("no text", "none")
    return _both().on(models("zoo:planted-lvlm")), ("what colour is b2", "what colour is c2")
