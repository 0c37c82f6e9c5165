"""Which cross-attention heads follow the other sequence: the sound, the source words or the patches a token is about.

Told where each token's words are (`spans`), a head is worth the weight its rows have there; without spans only whether
its rows move on in order can be said, which is not the same and is warned about. Both are asked of the row that
predicts a token and of the token's own row, one step later, where Chen et al. 2020 (arXiv 2004.14837) find translations
aligned; the heads from which Whisper's word times are taken are read where a token is predicted. Definitions:
`interp/heads/kinds/alignment.py`. Weights are read a few rows at a time.
Cost: one forward pass and about one more attention. Limits: where a head looks does not say that anything depends on
it; spans that are long are easily met, see what equal weights would have; cross-attention whose keys are one tower's
positions.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from interp.heads.kinds.alignment import CROSS_KINDS
from interp.heads.kinds.crossing import Crossing, Spans
from interp.heads.kinds.reading import head_names, head_sites, measured
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.head_names import numbers_of
from interp.hooks.run.tape import key_columns, tower_inputs
from interp.hooks.run.writes import spelled
from interp.hooks.sites import Site
from interp.provenance import about
from interp.records import Method, Trial, register
from interp.results.roles import HeadRoles

if TYPE_CHECKING:
    from interp.model import Model


def alignment(model: Model, data: Any, *, spans: Spans | None = None, heads: str | None = None) -> HeadRoles:
    """Values of cross-attention heads by kind: "aligned (own row)", "monotone (predicting row)" and so on.

    `heads` is a pattern such as "cross.L*", or of the layers among those of a text that are cross-attention, "L1,3";
    all there are if left out.

    `spans` holds for each example pairs of a token and its keys, as a list or a dict. The token is a text in the
    decoder (its n-th mention means its n-th occurrence), a column or (first, one past the last); the keys are a text in
    the source, key columns likewise, or seconds of sound as floats, `("cat", (0.3, 0.62))`.
    """
    sites = head_sites(model, _crossed(model) if heads is None else heads, cross=True)
    x = model.inputs(data)
    rows = tower_inputs(x, sites[0], cross=True)
    keys = tower_inputs(x, Site(sites[0].tower, sites[0].layer, "k"), cross=True)
    page = Crossing.between(rows, keys, key_columns(x, sites[0]), spans)
    left_out = {kind.name: why for kind in CROSS_KINDS if (why := kind.refuses(page)) is not None}
    kinds = [kind for kind in CROSS_KINDS if kind.name not in left_out]
    if not kinds:
        raise InputsError("nothing can be measured here: " + "; ".join(f"{k}: {w}" for k, w in left_out.items()))
    if spans is None:
        warnings.warn(
            "a monotone head need not be aligned: without spans= interp only sees whether later tokens look further"
            " on, and a head that counts tokens does so too",
            UserWarning,
            stacklevel=2,
        )
    values, notes = measured(model, sites, x, page, kinds)
    meta = {**about(model.module, x), "method": "alignment", "spans": spans is not None}
    return HeadRoles(head_names(model, sites), values, notes, left_out, meta)


def _crossed(model: Model) -> str:
    """The cross-attention layers of the first tower that has some."""
    anatomy = model.ready()
    for tower in anatomy.towers.values():
        if layers := numbers_of(layer.index for layer in tower.layers if layer.kind == "cross"):
            name = spelled(anatomy, tower)
            return f"{name}.L{layers}" if name else f"L{layers}"
    raise SiteError(f"{type(model.module).__name__} has no cross-attention: its heads look at their own sequence.")


def _trial(t: Trial) -> HeadRoles:
    spans = [[(1, (0, 2)), (2, 1)] for _ in range(t.model.inputs(t.base).batch)]
    return alignment(t.model, t.base, spans=spans)


register(
    Method(
        "interp.heads.alignment",
        number="weight on what a token is about, 0 to 1; of monotone a rank correlation, -1 to 1",
        shown="map",
        papers=("2004.14837",),
        passes=lambda t: 2,
        unfit=dict.fromkeys(("decoder", "vit", "lvlm"), "cross-attention"),
        example=_trial,
    )
)
