"""What structure cannot tell about one kind of model, as data.

Most models need none of this: their attention goes through transformers' interface and everything is found in a traced
call. A family says where the heads are in a model outside it: which module attends, how many heads it has, which module
is its output projection (whose input is z), which projections give q, k and v, and, where patterns shall be readable,
how the scores come about.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from interp.hooks.errors import ModelError

View = Literal["heads", "thirds:0", "thirds:1", "thirds:2", "per_head:0", "per_head:1", "per_head:2"]


@dataclass(frozen=True)
class Recipe:
    """How scores come from q and k: `scale * q.k`, visible where the causal rule or the module's own mask says so."""

    causal: bool = False
    """Whether a token sees only itself and the tokens before it."""
    mask: int | str | None = None
    """Which argument of the attention module is its mask (Bool, True where visible, or added to the scores)."""
    scale: float | None = None
    """None for 1/sqrt(d_head)."""


@dataclass(frozen=True)
class Projection:
    """A module whose output, seen through `view`, is q, k or v per head."""

    module: str
    """The name of the module inside the attention module."""
    view: View = "heads"
    """How heads are ordered in its output: "heads" one after the other; "thirds:n", part n of all q, all k, all v;
    "per_head:n", part n of the q, k, v of each head."""


@dataclass(frozen=True)
class Family:
    """Where the heads are in models of these types; module names are relative to the attention module."""

    name: str
    """What it is called in messages and in `m.check()`."""
    model_types: tuple[str, ...]
    """The `config.model_type` of the models that it describes, or the name of their class."""
    attention: str
    """Dotted end of the attention modules' names, with `*` for numbers and `|` between alternatives: `h.*.attn`."""
    out: str
    """The name of the output projection."""
    heads: str
    """Where the number of heads is: an attribute of the attention module or of the config."""
    kv_heads: str | None = None
    """Where the number of key-value heads is; None where there are as many as heads."""
    q: Projection | None = None
    """Where the queries come from; None where they cannot be read."""
    k: Projection | None = None
    """Where the keys come from; None where they cannot be read."""
    v: Projection | None = None
    """Where the values come from; None where they cannot be read."""
    recipe: Recipe | None = None
    """How scores come from q and k; None where scores and patterns cannot be read."""

    def attentions(self, root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """The attention modules of a model, by name."""
        ends = re.escape(self.attention).replace(r"\*", r"\d+").replace(r"\|", "|")
        wanted = re.compile(rf"(?:.*\.)?(?:{ends})$")
        return ((name, module) for name, module in root.named_modules() if wanted.match(name))

    def part(self, attention: nn.Module, name: str) -> nn.Module:
        """A module inside an attention module, by the name that the family says; heads are seen as it is called."""
        try:
            return attention.get_submodule(name)
        except AttributeError:
            found = _looked_up(attention, name)
        names = ", ".join(name for name, _ in attention.named_modules() if name) or "none"
        what = "it has no module of that name" if found is None else f"that is a {type(found).__name__}"
        raise ModelError(
            f"the family {self.name!r} names {name!r} in {type(attention).__name__}, and {what}. A family names"
            f" modules, which interp sees when they are called; the modules inside are: {names}. If the model"
            " multiplies by a bare parameter, put it into an nn.Linear, or call torch's scaled_dot_product_attention,"
            " which needs no family."
        )

    def count(self, what: str, root: nn.Module, module: nn.Module, *, otherwise: int | None = None) -> int:
        """A number of heads, looked up where the family says."""
        for owner in (
            module,
            getattr(module, "config", None),
            getattr(root, "config", None),
            getattr(root, "cfg", None),
        ):
            found = _looked_up(owner, what)
            if isinstance(found, int):
                return found
        if otherwise is not None:
            return otherwise
        raise ModelError(
            f"the family {self.name!r} says the number of heads is {what!r}, which neither the attention module nor the"
            " config has."
        )


def _looked_up(owner: Any, name: str) -> Any:
    """An attribute, or one of a module inside: `self.num_heads`."""
    for part in name.split("."):
        owner = getattr(owner, part, None)
    return owner


FALCON = Family(
    "falcon",
    ("falcon",),
    "h.*.self_attention",
    out="dense",
    heads="num_heads",
)
GPTJ = Family(
    "gptj",
    ("gptj",),
    "h.*.attn",
    out="out_proj",
    heads="num_attention_heads",
    q=Projection("q_proj"),
    k=Projection("k_proj"),
    v=Projection("v_proj"),
)
CODEGEN = Family("codegen", ("codegen",), "h.*.attn", out="out_proj", heads="num_attention_heads")
BLOOM = Family(
    "bloom",
    ("bloom",),
    "h.*.self_attention",
    out="dense",
    heads="num_heads",
    q=Projection("query_key_value", "per_head:0"),
    k=Projection("query_key_value", "per_head:1"),
    v=Projection("query_key_value", "per_head:2"),
)
MPT = Family("mpt", ("mpt",), "blocks.*.attn", out="out_proj", heads="n_heads")
GPT_NEO = Family(
    "gpt_neo",
    ("gpt_neo",),
    "h.*.attn.attention",
    out="out_proj",
    heads="num_heads",
    q=Projection("q_proj"),
    k=Projection("k_proj"),
    v=Projection("v_proj"),
)
SANA = Family(
    "sana",
    ("SanaTransformer2DModel", "SanaVideoTransformer3DModel"),
    "transformer_blocks.*.attn1",
    out="to_out.0",
    heads="heads",
    q=Projection("to_q"),
    k=Projection("to_k"),
    v=Projection("to_v"),
)
"""Linear attention, without a softmax: z, and q, k and v as their projections give them."""
PLAIN = Family(
    "plain",
    ("AttentionOnly",),
    "blocks.*.attn",
    out="o",
    heads="heads",
    q=Projection("q"),
    k=Projection("k"),
    v=Projection("v"),
    recipe=Recipe(mask=1),
)
TRANSFORMER_BRIDGE = Family(
    "transformer_bridge",
    (),
    "h.*._original_component.attn|layers.*._original_component.self_attn|layers.*._original_component.attention",
    out="o",
    heads="num_attention_heads",
    kv_heads="num_key_value_heads",
    q=Projection("q"),
    k=Projection("k"),
    v=Projection("v"),
)
_KNOWN: dict[str, Family] = {
    t: f for f in (FALCON, GPTJ, CODEGEN, BLOOM, MPT, GPT_NEO, SANA, PLAIN) for t in f.model_types
}


def register(family: Family) -> Family:
    """Make a family known to every later `attach` in this process, by the model types it names."""
    for model_type in family.model_types:
        _KNOWN[model_type] = family
    return family


def family_of(root: nn.Module) -> Family | None:
    """The registered family of a model, by its config's `model_type` or the name of its class."""
    config: Any = getattr(root, "config", None)
    return _KNOWN.get(getattr(config, "model_type", None) or "") or _KNOWN.get(type(root).__name__)


def split(tensor: Tensor, view: View, heads: int) -> Tensor:
    """[b, s, width] seen per head: [b, s, heads, d]. A view of the same memory, so writing to it writes to the
    tensor."""
    if view == "heads":
        return tensor.unflatten(-1, (heads, -1))
    layout, which = view.split(":")
    if layout == "thirds":
        return tensor.unflatten(-1, (3, heads, -1))[..., int(which), :, :]
    return tensor.unflatten(-1, (heads, 3, -1))[..., int(which), :]
