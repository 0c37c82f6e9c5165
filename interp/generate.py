"""Generate under edits, with a KV cache.

Positions of edits are columns of the prompt and stay those in every step; `phase` says whether edits act on the prompt
(`prefill`), on the tokens generated after it (`decode`), or on both. Edits of k and v are never written back to the
cache: an edit that shall last acts in every step. Cost: that of transformers' own `generate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from interp.held import Held
from interp.hooks.edits.edits import Edit, several
from interp.hooks.errors import EditError, InputsError, ModelError
from interp.hooks.run.session import Session


@dataclass(frozen=True, eq=False)
class Generated:
    """What was generated: ids [row, new token], their log-probabilities, and text where there is a tokenizer.

    A row that ends early is filled up, with log-probabilities 0, so that sums are those of its text.
    """

    ids: Tensor
    """The new tokens [row, new token]."""
    logprobs: Tensor
    """Their log-probabilities [row, new token]."""
    texts: tuple[str, ...] | None
    """The new text of each row; None without a tokenizer."""

    @property
    def text(self) -> str | None:
        """The text of a single row; that of several rows is `texts`."""
        if len(self.ids) != 1:
            raise InputsError(f"{len(self.ids)} rows were generated, so there is no one text: read .texts, row by row.")
        return self.texts[0] if self.texts else None


def generate(
    model: Held,
    inputs: Any,
    *,
    edits: Edit | Iterable[Edit] = (),
    phase: Literal["prefill", "decode", "both"] | None = None,
    max_new_tokens: int = 20,
    **how: Any,
) -> Generated:
    """Greedy unless told otherwise; `how` goes to transformers' `generate`."""
    _refuse(how)
    if not hasattr(model.module, "generate"):
        raise ModelError(f"{type(model.module).__name__} cannot generate: it has no generate method.")
    anatomy = model.ready()
    x = model.inputs(inputs)
    if "attention_mask" in x.kwargs and not bool(x.valid[:, -1].all()) and not model.config.is_encoder_decoder:
        raise InputsError(
            "generating continues from the last column, so prompts must be padded on the left: m.prepare(...,"
            " padding='left')."
        )
    placed = [edit if phase is None else replace(edit, phase=phase) for edit in several(edits)]
    session = Session(model.module, anatomy, edits=placed, inputs=x, family=model.family)
    module: Any = model.module
    with model.on(session), torch.no_grad():
        out = module.generate(
            **model.called_with(x.kwargs),
            max_new_tokens=max_new_tokens,
            return_dict_in_generate=True,
            output_logits=True,
            **({"do_sample": False} | how),
        )
    fired(session, max_new_tokens)
    return _read(model, out, how)


def _refuse(how: Mapping[str, Any]) -> None:
    """Ways of generating in which the rows, or the steps, are not the ones that edits speak of."""
    if how.get("num_beams", 1) != 1 or how.get("num_return_sequences", 1) != 1:
        raise InputsError(
            "generate runs one beam and one sequence a row: several beams or sequences change the order of rows, and"
            " edits name rows."
        )
    if not how.get("use_cache", True):
        raise InputsError(
            "generate needs the KV cache: without it each step runs the whole text as a new prompt. Leave out"
            " use_cache."
        )
    for name in ("assistant_model", "prompt_lookup_num_tokens", "prefill_chunk_size"):
        if how.get(name) is not None:
            raise InputsError(
                f"generate computes one token in each step, and the whole prompt in one step: leave out {name}=."
            )


def fired(session: Session, max_new_tokens: int) -> None:
    """Raise for edits that never acted, and say why where no step so late was reached."""
    late = [p.edit for p in session.edits if p.edit.step is not None and p.edit.step >= max_new_tokens - 1]
    if late:
        raise EditError(
            f"{late[0]!r}: with max_new_tokens={max_new_tokens} the decoding steps are 0 to {max_new_tokens - 2}; the"
            " first new token is computed with the prompt."
        )
    session.check_fired()


def _read(model: Held, out: Any, how: Mapping[str, Any]) -> Generated:
    """Ids and their log-probabilities; 0 for what fills up a row after its last token."""
    logits = torch.stack(out.logits, dim=1).float()
    ids = out.sequences[:, -logits.shape[1] :]
    logprobs = logits.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
    ends = torch.isin(ids, ends_of(model, how).to(ids.device)).long()
    return read_texts(model, ids, logprobs.masked_fill(ends.cumsum(-1) - ends > 0, 0.0))


def read_texts(model: Held, ids: Tensor, logprobs: Tensor) -> Generated:
    """Ids with their log-probabilities, and their texts where there is a tokenizer."""
    decode = getattr(model.tokenizer, "batch_decode", None)
    return Generated(
        ids.cpu(), logprobs.cpu(), None if decode is None else tuple(decode(ids, skip_special_tokens=True))
    )


def ends_of(model: Held, how: Mapping[str, Any]) -> Tensor:
    """The ids that end a text."""
    found = how.get("eos_token_id", getattr(getattr(model.module, "generation_config", None), "eos_token_id", None))
    return torch.tensor([] if found is None else found, dtype=torch.long).flatten()
