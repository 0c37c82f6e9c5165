"""Where the heads may be in a model whose attention call is not seen: by the names of projections, then by trying.

Some models compute their softmax themselves, under names that many share: three projections beside each other that are
called query, key and value in one way or another, and a matrix behind them that reads as many numbers as values have
(`PROJECTIONS`, `OUTPUTS`). Such a family is only a guess, and is believed where the model behaves so: with the last
head's values set to zero, the last head's part of what the output matrix reads is zero, and every other part is the
same, bit for bit, in the first layer. Cost: two forward passes. Limits: z, and q, k and v as their projections give
them, before rotary positions; no pattern. A model that mixes heads between softmax and output matrix is not believed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.family import Family, Projection

PROJECTIONS = (
    ("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("query_proj", "key_proj", "value_proj"),
    ("q_lin", "k_lin", "v_lin"), ("q", "k", "v"), ("q_head", "k_head", "v_head"),
    ("linear_q", "linear_k", "linear_v"), ("to_q", "to_k", "to_v"), ("q_net", "k_net", "v_net"),
    ("project_q", "project_k", "project_v"), ("query_layer", "key_layer", "value_layer"),
)  # fmt: skip
"""What queries, keys and values are called."""
OUTPUTS = ("out_proj", "o_proj", "out_lin", "o", "post_proj", "linear_out", "to_out.0", "output.dense", "dense", "proj",
           "attention_out", "fc", "project_o")  # fmt: skip
"""What reads the heads, in the module that attends or in the one around it."""
COUNTS = (
    "num_attention_heads",
    "num_heads",
    "n_heads",
    "n_head",
    "heads",
    "attention_heads",
    "encoder_attention_heads",
)
"""What the number of heads is called, in the module or in the config."""


def guessed(root: nn.Module, inputs: Mapping[str, Any]) -> Family | None:
    """A family that the model behaves like; None where none is found."""
    return next((family for family in _candidates(root) if _behaves(root, family, inputs)), None)


def _candidates(root: nn.Module) -> Iterator[Family]:
    """Families that the names allow, each of all the modules that it fits."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name, module in root.named_modules():
        for names in PROJECTIONS:
            if all(_matrix(getattr(module, one, None)) is not None for one in names):
                for place, prefix, out in _outputs(root, name, getattr(module, names[2])):
                    heads = _count(root, module, prefix, getattr(module, names[2]))
                    if heads is not None:
                        found.setdefault((heads, out, *(prefix + one for one in names)), []).append(place)
    for (heads, out, q, k, v), places in found.items():
        ends = "|".join(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.|$)", "*", place) for place in places))
        yield Family("guessed", (), ends, out, heads, q=Projection(q), k=Projection(k), v=Projection(v))


def _outputs(root: nn.Module, name: str, values: nn.Module) -> Iterator[tuple[str, str, str]]:
    """Modules that attend with the matrix that reads their heads: name, what stands before q, k and v, the matrix."""
    around, _, own = name.rpartition(".")
    for place, prefix in ((name, ""), (around, f"{own}.")):
        for out in OUTPUTS:
            found = _sub(root, f"{place}.{out}" if place else out)
            if found is not None and _shape(found)[1] == _shape(values)[0]:
                yield place, prefix, out


def _sub(root: nn.Module, name: str) -> nn.Module | None:
    for part in name.split("."):
        found = root._modules.get(part)
        if found is None:
            return None
        root = found
    return root if _matrix(root) is not None else None


def _matrix(module: Any) -> Tensor | None:
    """The matrix of a projection."""
    weight = getattr(module, "weight", None) if isinstance(module, nn.Module) else None
    return weight if isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(module, nn.Embedding) else None


def _shape(module: nn.Module) -> tuple[int, int]:
    """Numbers that come out, and numbers that go in."""
    weight = _matrix(module)
    assert weight is not None
    out, into = weight.shape
    return (into, out) if type(module).__name__ == "Conv1D" else (out, into)


def _count(root: nn.Module, module: nn.Module, prefix: str, values: nn.Module) -> str | None:
    """What the number of heads is called, where it is a number that divides what values have."""
    owners = ((module, prefix), (getattr(module, "config", None), ""), (getattr(root, "config", None), ""))
    for owner, before in owners:
        for name in COUNTS:
            number = getattr(owner, name, None)
            if isinstance(number, int) and number > 0 and _shape(values)[0] % number == 0:
                return before + name
    return None


def _behaves(root: nn.Module, family: Family, inputs: Mapping[str, Any]) -> bool:
    """Whether the last head's values are what the last head's part of the output matrix reads, and nothing else."""
    name, attention = next(iter(family.attentions(root)))
    assert family.v is not None
    heads = family.count(family.heads, root, attention)
    values, out = (root.get_submodule(f"{name}.{one}" if name else one) for one in (family.v.module, family.out))
    plain = _read(root, out, inputs)
    if len(plain) != 1 or plain[0].shape[-1] % heads:
        return False
    size = plain[0].shape[-1] // heads

    def without(_: nn.Module, args: Any, made: Any) -> Any:
        if not torch.is_tensor(made):
            return None
        made = made.clone()
        made[..., -size:] = 0
        return made

    handle = values.register_forward_hook(without)
    try:
        (cut,) = _read(root, out, inputs)
    finally:
        handle.remove()
    mine, others = slice(-size, None), slice(None, -size)
    gone = not cut[..., mine].any() and bool(plain[0][..., mine].any())
    return gone and torch.equal(cut[..., others], plain[0][..., others])


def _read(root: nn.Module, out: nn.Module, inputs: Mapping[str, Any]) -> list[Tensor]:
    """What the output matrix reads in a run."""
    found: list[Tensor] = []
    handle = out.register_forward_pre_hook(lambda _, args: found.append(args[0].detach().clone()))
    try:
        with torch.no_grad():
            root(**inputs)
    finally:
        handle.remove()
    return found
