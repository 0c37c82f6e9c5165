"""The logit lens: what the model would say if it stopped at a layer, or if a head alone spoke.

nostalgebraist 2020: an intermediate residual goes through the final norm and the head. `norm="final"` is the model's
norm with the vector's own statistics; `"frozen"` holds the scale of this run's last residual, and leaves the norm's
shift out of what heads, attention and MLPs add, which makes their lenses shares of the answer; `"none"` leaves the norm
out. Per place and position come the top tokens, and of an answer
its log-probability and rank (0 is first). Cost: one forward pass, then the head's matrix product per place and position
asked for; only one place's logits are in memory at a time. Limits: early layers may write in another basis than the
last (`tuned_lens`, `jacobian_lens`); lenses of heads are not effects.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp.hooks.drive.tail import How, Tail, last_tower
from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Positions
from interp.hooks.sites import Site
from interp.patching.lenses.said import PARTS, Lens, LensReader, places_of, vectors_of
from interp.records import Method, register

if TYPE_CHECKING:
    from interp.model import Model


def lens(
    model: Model,
    inputs: Any,
    *,
    sites: str | Iterable[str] = "L*.resid_post",
    positions: Positions = "last",
    answers: Any = None,
    norm: How = "final",
    top: int = 5,
) -> Lens:
    """The lens at residuals, writes (`L*.attn_out`, `L*.mlp_out`) or heads (`L*.H*.result`) of the last tower."""
    if norm not in ("final", "frozen", "none"):
        raise InputsError(f"norm is 'final', 'frozen' or 'none', got {norm!r}.")
    anatomy = model.ready()
    x = model.inputs(inputs)
    stack = last_tower(anatomy, None)
    places = places_of(model, stack, [sites] if isinstance(sites, str) else list(sites))
    record = [Site(s.tower, s.layer, "z") if s.component == "result" else s for s in places]
    end = Site(places[0].tower, stack.layers[-1].index, "resid_post")
    tape = model.run(x, record=[*dict.fromkeys(site.whole for site in record), end])
    reader = LensReader.of(model, x, tape, end, stack, positions=positions, answers=answers, top=top)
    vectors = zip(places, vectors_of(model, tape, places), strict=True)
    normed = (_normed(reader.tail, vector, norm, site.component in PARTS) for site, vector in vectors)
    return reader.lens(model, list(map(str, places)), normed, {**tape.meta, "method": "logit lens", "norm": norm})


def _normed(tail: Tail, vector: Tensor, norm: How, part: bool) -> Tensor:
    vector = vector.reshape(tail.left.shape)
    if part and norm == "frozen":
        return tail.frozen.linear(vector).to(vector.dtype)
    return tail.normed(vector, norm)


register(
    Method(
        "interp.lens",
        number="log-probability of the words that a residual or a head says, as if the model stopped there",
        shown="table",
        passes=lambda t: 2,
        values="top_logprobs",
        examples=1,
        example=lambda t: lens(t.model, t.base, sites=f"{t.tower}L*.resid_post", top=2),
    )
)
