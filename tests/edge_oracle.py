"""Edges by definition, in float64 and by full passes: read more at one place, put what comes of it in its place."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import models
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import interp
from interp.hooks.examples.example import example
from interp.planted.probes import probe_task

LENGTH = 5


class Wide(TorchFunctionMode):
    """Inside, what is float64 stays so: RMS norms and softmaxes of transformers go to float32 whatever they are given,
    which a difference over a small step sees as noise and a tolerance would have to forgive."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch.is_tensor(args[0] if args else None) and args[0].dtype == torch.float64:
            if func is Tensor.float or (func is Tensor.to and torch.float32 in (*args[1:], *kwargs.values())):
                return args[0]
            if func is torch.nn.functional.softmax and kwargs.get("dtype") == torch.float32:
                kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


def difference(logits: Tensor, inputs: Any) -> Tensor:
    last = logits if logits.ndim == 2 else logits[:, -1]
    return last[:, 0] - last[:, 1]


attached = partial(models.attached, dtype=torch.float64)


def asked(name: str) -> tuple[interp.Model, Any, Any]:
    m = attached(name)
    base, source = (dict(example(m.module, batch=2, length=LENGTH, seed=seed)) for seed in (1, 2))
    return m, base, source


class Oracle:
    """One base run, perhaps with edits, and what a source writes more."""

    def __init__(self, m: interp.Model, base: Any, source: Any, edits: tuple[Any, ...] = ()) -> None:
        self.m, self.base, self.edits = m, base, list(edits)
        self.tower = m.anatomy.tower(None, text="")
        self.name = "" if len(m.anatomy.towers) == 1 else f"{self.tower.name}."
        parts = ("result", "mlp_write", "attn_out", "attn_write", "q", "k", "v", "resid_pre", "resid_mid")
        ports = [p for p in parts if p in ("result", "q", "k", "v") or p in self.tower.layers[0].ports]
        self.record = [f"{self.name}embed", f"{self.name}L{len(self.tower.layers) - 1}.resid_post"]
        self.record += [f"{self.name}L*.{part}" for part in ports]
        self.old, self.plain = m.run(base, record=self.record), m.run(base, record=self.record, edits=self.edits)
        self.new = m.run(source, record=self.record)
        self.score = difference(self.plain["logits"], None)

    def more(self, sender: str, size: float) -> Tensor:
        """What a sender writes more, `size` times the change."""
        site = sender if sender.endswith(("embed", "mlp_write")) else f"{sender}.result"
        change = size * (self.new[site] - self.old[site])
        if site == sender:
            return change
        change, layer = change[:, :, 0], sender.partition(".H")[0]
        out, write = self.plain[f"{layer}.attn_out"], self.plain[f"{layer}.attn_write"]
        out = out.reshape(write.shape)
        if torch.equal(out, write):
            return change
        port = self.m.anatomy.layer(self.m.anatomy.one(f"{layer}.attn_write")).ports["attn_write"]
        norm: nn.Module = self.m.module.get_submodule(port.module)
        with torch.no_grad():
            return norm(out + change) - norm(out)

    def read(self, receiver: str, more: Tensor) -> Tensor:
        """The metric when one receiver reads `more` on top."""
        if receiver == "logits":
            site = self.record[1]
            return self.run([interp.Set(site, self.plain[site] + more)])
        head, _, part = receiver.rpartition(".")
        layer = f"{head.split('.H')[0].split('.K')[0]}"
        where, at = (f"{layer}.resid_pre", f"{head}.{part[0]}")
        if part == "mlp_in":
            mid = f"{layer}.resid_mid"
            where, at = (mid if mid in self.plain else where), f"{layer}.mlp_write"
        moved = self.m.run(self.base, record=[at], edits=[*self.edits, interp.Set(where, self.plain[where] + more)])
        return self.run([interp.Set(at, moved[at])])

    def run(self, edits: list[Any]) -> Tensor:
        return difference(self.m.run(self.base, edits=[*self.edits, *edits])["logits"], None)

    def exact(self, sender: str, receiver: str) -> Tensor:
        return self.read(receiver, self.more(sender, 1.0)) - self.score

    def slope(self, sender: str, receiver: str, step: float = 1e-5) -> Tensor:
        """The derivative by how much of the change is read."""
        ends = [self.read(receiver, self.more(sender, size)) for size in (step, -step)]
        return (ends[0] - ends[1]) / (2 * step)


@cache
def found(name: str, direction: str, method: str) -> dict[str, float]:
    """What a method says of the edges of a planted gate that it does not give 0."""
    m = interp.load(f"zoo:planted-{name}")
    task = probe_task(f"planted-{name}", model=m)
    base, source = (task.corrupt, task.clean) if direction == "denoise" else (task.clean, task.corrupt)
    e = interp.edges(m, base=base, source=source, metric=task.metric, method=method)
    return {e.graph.name(n): float(v) for n, v in zip(e.graph.edges, e.mean, strict=True) if abs(float(v)) > 5e-5}


GATE = {"L0.mlp_write->logits": 2.0}
PAIR = ("embed->L0.K1.v_in", "embed->L0.K2.v_in", "L0.H1->L0.mlp_in", "L0.H2->L0.mlp_in")
PRIMARY = {"embed->L0.K1.v_in": 4.0, "L0.H1->logits": 4.0}
CANCEL = {f"{u}->{v}": 2.0 * weight for head, weight in ((0, 2), (1, -2), (3, 1))
          for u, v in (("embed", f"L0.K{head}.v_in"), (f"L0.H{head}", "logits"))}  # fmt: skip
LINEAR = {"backup": PRIMARY, "cancel": CANCEL, "saturated": {"L1.H2->logits": 4.0}}
