"""The grammar of places in a model, and its one parser.

    site      = [tower "."] ["L" numbers ["@" numbers] "."] [("H" | "K") numbers "."] component
    numbers   = number | "3-7" | "1,4" | "*" | "-1", which is the last

`L5.H3.z`, `vision.L*.H0-3.pattern`, `L2.K1.k`, `connector.out`, `logits`. A site without a component means the heads'
attention (`L9.H*`). `L5H3`, `5.3`, `a5.h3` and TransformerLens' `blocks.5.attn.hook_z` are read as well; the first
spelling is the one printed.

A layer that runs several times in one call of the model (ALBERT's, a loop over one block) has a pass for each time,
counted from 0: `L0@7.H3.z` is a head of layer 0 in its eighth pass, `L0@2-4` three passes, and `L0` without `@` is all
of them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from interp.hooks.errors import SiteError

HEAD = frozenset({"q", "z", "result", "pattern", "scores", "attention", "q_in"})
KV = frozenset({"k", "v", "k_in", "v_in"})
LAYER = frozenset(
    "resid_pre resid_mid resid_mid2 resid_post attn_in mlp_in attn_out mlp_out attn_write mlp_write neurons".split()
)
MODEL = frozenset({"embed", "final_norm", "logits", "out"})
COMPONENTS = HEAD | KV | LAYER | MODEL
CALL = frozenset({"q", "k", "v", "z", "pattern", "scores", "attention"})

TRANSFORMER_LENS = {
    "hook_embed": "embed",
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_in": "attn_in",
    "hook_mlp_in": "mlp_in",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "attn.hook_q": "q",
    "attn.hook_k": "k",
    "attn.hook_v": "v",
    "attn.hook_z": "z",
    "attn.hook_result": "result",
    "attn.hook_pattern": "pattern",
    "attn.hook_attn_scores": "scores",
    "mlp.hook_post": "neurons",
}


def cached(name: str, layer: int) -> str:
    """The site of a key of TransformerLens' cache, ("pattern", 5)."""
    short = {one.rpartition("hook_")[2]: component for one, component in TRANSFORMER_LENS.items() if "embed" not in one}
    if name not in short:
        raise SiteError(f"no key ({name!r}, layer) here; known are {', '.join(map(repr, short))}.")
    return f"L{layer}.{short[name]}"


_NUMBERS = r"(?:\*|\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)"
_SITE = re.compile(
    rf"^(?:(?P<tower>[a-z][a-z_0-9]*)\.)?(?:L(?P<layers>{_NUMBERS}|-\d+)(?:@(?P<passes>{_NUMBERS}|-\d+))?\.?)?"
    rf"(?:(?P<kind>[HK])(?P<heads>{_NUMBERS})\.?)?(?P<component>[a-z][a-z_0-9]*)?$"
)
_SHORT = re.compile(
    r"^(?:(?P<tower>[a-z][a-z_0-9]*)\.)?(?:a)?(?P<layer>\d+)\.(?:h)?(?P<head>\d+)(?:\.(?P<component>[a-z_0-9]+))?$"
)


class LayerPass(int):
    """One pass of a layer, for towers in which a layer runs several times: it counts as the place that it has among all
    that the tower runs (as its layer's number where that is not known), and prints as `0@7`, or as `2` where layer 2
    runs once. It equals the same pass of the same layer and nothing else."""

    number: int
    """The layer's."""
    nth: int | None
    """Which of its passes, from 0; None for a layer that runs once."""

    def __new__(cls, order: int, number: int, nth: int | None = None) -> LayerPass:
        made = super().__new__(cls, order)
        made.number, made.nth = int(number), nth
        return made

    def __getnewargs__(self) -> tuple[int, int, int | None]:  # type: ignore[override]
        return int(self), self.number, self.nth

    def __repr__(self) -> str:
        return str(self.number) if self.nth is None else f"{self.number}@{self.nth}"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int) and (self.number, self.nth) == (layer_of(other), pass_of(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __lt__(self, other: int) -> bool:
        return _placed(self) < _placed(other)

    def __gt__(self, other: int) -> bool:
        return _placed(self) > _placed(other)

    def __le__(self, other: int) -> bool:
        return _placed(self) <= _placed(other)

    def __ge__(self, other: int) -> bool:
        return _placed(self) >= _placed(other)

    def __hash__(self) -> int:
        return hash(self.number) if self.nth is None else hash((self.number, self.nth))


def _placed(index: int) -> tuple[int, int]:
    return int(index), pass_of(index) or 0


def layer_of(index: int) -> int:
    """The number of the layer that an index is of: the same one for all passes of a layer."""
    return index.number if isinstance(index, LayerPass) else int(index)


def pass_of(index: int) -> int | None:
    """Which pass of its layer an index is; None for a layer that runs once."""
    return index.nth if isinstance(index, LayerPass) else None


def plain_layer(index: int) -> int | str:
    """An index as files have it: a number, or "0@7"."""
    return layer_of(index) if pass_of(index) is None else str(index)


@dataclass(frozen=True, order=True)
class Site:
    """One component in one layer: what a tape stores, an edit changes and a result is labelled with.

    `heads` is None for all of them. Heads of `k` and `v` are kv heads and print as `K`.
    """

    tower: str | None
    """The tower, such as "text"; None in models with one tower, and where none was written."""
    layer: int | None
    """The number of the layer; None for sites of a whole tower, such as `final_norm`."""
    component: str
    """What is read or changed: "z", "pattern", "resid_post" and so on."""
    heads: tuple[int, ...] | None = None
    """The numbers of the heads; None for all of them."""
    query_heads: bool = False
    """Whether `heads` of a k or v site was written with H: it then means the group that this query head reads."""

    def __str__(self) -> str:
        parts = [] if self.tower is None else [self.tower]
        if self.layer is not None:
            parts.append(f"L{self.layer}")
        if self.heads is not None:
            letter = "K" if self.component in KV and not self.query_heads else "H"
            parts.append(letter + ",".join(map(str, self.heads)))
        if self.component != "attention" or self.heads is None:
            parts.append(self.component)
        return ".".join(parts)

    @property
    def whole(self) -> Site:
        """The same place with every head."""
        return replace(self, heads=None, query_heads=False)


@dataclass(frozen=True)
class Pattern:
    """A parsed site before a model has said which layers and heads it has."""

    text: str
    tower: str | None
    layers: str | None
    kind: Literal["H", "K"] | None
    heads: str | None
    component: str
    passes: str | None = None

    @property
    def index(self) -> int | None:
        """The one layer, or the one pass of one, that it names; None where it names none or several."""
        if self.layers is None or not self.layers.isdigit():
            return None
        if self.passes is None:
            return int(self.layers)
        return LayerPass(int(self.layers), int(self.layers), int(self.passes)) if self.passes.isdigit() else None


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean x?' when something known is close, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def parse(text: str | Site) -> Pattern:
    """Read one site in any accepted spelling."""
    spelled = _from_transformer_lens(str(text).strip())
    if short := _SHORT.match(spelled):
        tower, layer, head, component = short.group("tower", "layer", "head", "component")
        tower = None if tower == "a" else tower
        return _checked(Pattern(str(text), tower, layer, "H", head, component or "attention"))
    if not spelled or not (found := _SITE.match(spelled)):
        raise SiteError(
            f"cannot read the site {str(text)!r}: expected [tower.][L<layers>[@<passes>].][H<heads>.]component,"
            " for example 'L5.H3.z', 'vision.L*.z', 'L2-4.resid_post' or 'L0@7.H3.z'."
        )
    tower, layers, heads, component = found.group("tower", "layers", "heads", "component")
    kind: Literal["H", "K"] | None = None if heads is None else "K" if found["kind"] == "K" else "H"
    if component is None and layers is None:
        raise SiteError(f"{str(text)!r} names a tower and nothing in it: write '{tower}.L3.z', for example.")
    return _checked(Pattern(str(text), tower, layers, kind, heads, component or "attention", found["passes"]))


def _checked(pattern: Pattern) -> Pattern:
    component, text = pattern.component, pattern.text
    if component not in COMPONENTS:
        raise SiteError(
            f"no component {component!r} in the site {text!r}.{nearest(component, COMPONENTS)}"
            f" Components: {', '.join(sorted(COMPONENTS - {'attention'}))}."
        )
    if component in MODEL and (pattern.layers or pattern.heads):
        raise SiteError(f"{component!r} belongs to the whole tower, so {text!r} may not name a layer or heads.")
    if component not in MODEL and pattern.layers is None:
        raise SiteError(f"the site {text!r} names no layer: write 'L3.{component}' or 'L*.{component}'.")
    if pattern.heads and component in LAYER:
        raise SiteError(
            f"{component!r} has no heads, so {text!r} may not name any; per-head sites: {', '.join(sorted(HEAD | KV))}."
        )
    if pattern.kind == "K" and component not in KV:
        raise SiteError(f"{text!r} names kv heads, but {component!r} belongs to query heads: write H instead of K.")
    return pattern


def _from_transformer_lens(text: str) -> str:
    found = re.match(r"^(?:(?P<stack>encoder|decoder)_)?blocks\.(?P<layer>\d+)\.(?P<name>.+)$", text)
    if not found:
        return {"hook_embed": "embed", "ln_final.hook_normalized": "final_norm", "unembed.hook_out": "logits"}.get(
            text, text
        )
    if found["name"] not in TRANSFORMER_LENS:
        raise SiteError(
            f"no TransformerLens name {text!r} here; known after 'blocks.N.': {', '.join(TRANSFORMER_LENS)}."
        )
    stack = f"{found['stack']}." if found["stack"] else ""
    return f"{stack}L{found['layer']}.{TRANSFORMER_LENS[found['name']]}"


def numbers(spelled: str, known: Sequence[int], *, what: str, text: str, owner: str = "this tower") -> tuple[int, ...]:
    """The numbers that `3-7`, `1,4`, `*` or `-1`, which is the last, mean among the known ones."""
    if spelled == "*":
        return tuple(known)
    if spelled.startswith("-"):
        if not -len(known) <= int(spelled) < 0:
            raise SiteError(f"no {what} {spelled} for {text!r}: {owner} has {_many(what)} {_spell(known)}.")
        return (known[int(spelled)],)
    wanted: list[int] = []
    for part in spelled.split(","):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if high < low:
            raise SiteError(f"the range {part!r} in {text!r} is empty: write the smaller number first.")
        beyond = next((n for n in (low, high) if n not in known), None)
        if beyond is not None:
            raise SiteError(f"no {what} {beyond} for {text!r}: {owner} has {_many(what)} {_spell(known)}.")
        wanted.extend(range(low, high + 1))
    missing = [n for n in wanted if n not in known]
    if missing:
        raise SiteError(f"no {what} {missing[0]} for {text!r}: {owner} has {_many(what)} {_spell(known)}.")
    return tuple(dict.fromkeys(wanted))


def _many(what: str) -> str:
    return "passes" if what == "pass" else f"{what}s"


def _spell(known: Sequence[int]) -> str:
    if not known:
        return "none"
    contiguous = list(known) == list(range(known[0], known[-1] + 1))
    return f"{known[0]}-{known[-1]}" if contiguous else ",".join(map(str, known))


def per_layer(
    pattern: Pattern, layers: Sequence[int], heads_of: Callable[[int], int], *, tower: str | None
) -> list[Site]:
    """One site per layer and pass that the pattern names, heads resolved against each layer's own count."""
    sites = []
    for layer in _named(pattern, layers):
        heads = None
        if pattern.heads is not None and pattern.heads != "*":
            heads = numbers(pattern.heads, range(heads_of(layer)), what="head", text=pattern.text)
        sites.append(
            Site(
                tower,
                layer,
                pattern.component,
                heads,
                pattern.kind == "H" and pattern.component in KV and heads is not None,
            )
        )
    return sites


def _named(pattern: Pattern, layers: Sequence[int]) -> Sequence[int]:
    """The layers that a pattern names, in the order it names them; where layers have passes, in that of running."""
    known = list(dict.fromkeys(map(layer_of, layers)))
    wanted = numbers(pattern.layers or "*", sorted(known), what="layer", text=pattern.text)
    if not any(isinstance(layer, LayerPass) for layer in layers):
        if pattern.passes not in (None, "*", "0"):
            raise SiteError(f"{pattern.text!r}: every layer of this tower runs once in a call: write it without '@'.")
        return wanted
    mine = [layer for layer in layers if layer_of(layer) in wanted]
    if pattern.passes is None:
        return mine
    passes = sorted({pass_of(layer) or 0 for layer in mine})
    asked = numbers(pattern.passes, passes, what="pass", text=pattern.text, owner=f"layer {pattern.layers}")
    return [layer for layer in mine if (pass_of(layer) or 0) in asked]
