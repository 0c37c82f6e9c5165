"""Models side by side, against centred kernels and ridge regression written out here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import forgetful as f
import pytest
import torch
from models import attached
from torch import Tensor

import interp
from interp.forgetting import ModelsCompared, compare_models, dampen
from interp.forgetting.similarity import RIDGE, cka, cka_interval, probed
from interp.kernels.errors import InterpError
from interp.pruning.cut import copied


def vectors(seed: int, n: int = 12, d: int = 5) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_kernels(x: Tensor, y: Tensor) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with HSIC(K, L) = tr(K H L H), H the centring matrix."""
    n = len(x)
    h = torch.eye(n, dtype=x.dtype) - 1 / n
    k, other = x @ x.T, y @ y.T

    def hsic(a: Tensor, b: Tensor) -> Tensor:
        return (a @ h @ b @ h).trace()

    return float(hsic(k, other) / (hsic(k, k) * hsic(other, other)).sqrt())


def test_cka_is_that_of_centred_kernels() -> None:
    x, y = vectors(0), vectors(1, d=7)
    assert float(cka(x, y)) == pytest.approx(by_kernels(x, y), rel=1e-12)


def test_cka_does_not_see_rotation_scale_or_place() -> None:
    x, (turn, _) = vectors(0), torch.linalg.qr(vectors(2, 5, 5))
    assert float(cka(x, 3 * x @ turn + 7)) == pytest.approx(1, abs=1e-12)
    assert torch.isnan(cka(x, torch.ones_like(x)))


def test_its_interval_is_of_examples_left_out_one_by_one() -> None:
    x, y = vectors(0, 6), vectors(1, 6)
    each = torch.tensor([by_kernels(*(torch.cat([one[:n], one[n + 1 :]]) for one in (x, y))) for n in range(6)])
    error = (5 / 6 * (each - each.mean()).square().sum()).sqrt()
    whole, low, high = cka_interval(x, y)
    assert float(whole - low) == pytest.approx(1.96 * float(error), rel=1e-5)
    assert float(high - whole) == pytest.approx(1.96 * float(error), rel=1e-5)


def test_a_probe_is_ridge_regression_on_the_other_folds() -> None:
    x, labels = vectors(3, 13), torch.tensor([0, 2, 1, 0, 2, 1, 0, 2, 1, 0, 2, 1, 0])
    found = probed(x[None], labels, folds=3)[0]
    for n in range(13):
        train = [k for k in range(13) if k % 3 != n % 3]
        mean, spread = x[train].mean(0), x[train].std(0, correction=0)
        a, b = (x[train] - mean) / spread, (x[n] - mean) / spread
        y = torch.eye(3, dtype=x.dtype)[labels[train]]
        w = torch.linalg.solve(a.T @ a + RIDGE * len(train) * torch.eye(5, dtype=x.dtype), a.T @ (y - y.mean(0)))
        assert int(found[n]) == int((b @ w + y.mean(0)).argmax())


def test_a_probe_of_numbers_that_do_not_vary_says_the_commonest_label() -> None:
    labels = torch.tensor([1, 1, 1, 0, 1, 1])
    assert probed(torch.ones(1, 6, 4), labels, folds=2).eq(1).all()


CLASSES = [n % f.CLASSES for n in range(16)]


def test_a_model_beside_itself_is_the_same() -> None:
    found = compare_models(f.knows(), f.knows(), f.asked(*CLASSES), labels=CLASSES)
    seen = ~found.cka.isnan()
    assert torch.allclose(found.cka[seen], torch.ones(1, dtype=torch.float64), atol=1e-9)
    assert torch.equal(found.right[0], found.right[1])


def silenced() -> interp.Model:
    """A copy whose head for class 0 reads nothing."""
    own = copied(f.knows())
    third = own.module.get_parameter("transformer.h.0.attn.c_attn.weight")[:, 2 * f.WIDTH :]
    with torch.no_grad():
        third[:, f.ALONE * f.D_HEAD : (f.ALONE + 1) * f.D_HEAD] = 0
    return own


def test_a_class_is_gone_for_a_probe_of_the_head_that_no_longer_reads_it_and_of_no_other() -> None:
    frame = compare_models(silenced(), f.knows(), f.asked(*CLASSES), labels=CLASSES).to_frame(0).set_index("site")
    alone, rest = f"L0.H{f.ALONE}.z", f"L0.H{f.REST}.z"
    assert frame.loc[alone, "probe"] <= 0.25, "of four classes one may be guessed"
    assert frame.loc[alone, "probe_other"] == 1.0
    assert frame.loc[rest, "difference"] == 0
    assert frame.loc[[alone], "estimate"].isna().all(), "CKA with what does not vary"
    assert frame.loc["L0.resid_post", "probe"] == 1.0, "with its logit gone, a class is still told from three that have"


def test_a_whisper_is_read_as_well_as_a_voice() -> None:
    """Vectors are standardised and CKA knows no size: what was made small, and not 0, is all there."""
    how: dict[str, Any] = {"labels": f.named(0), "retain_labels": f.named(1, 2, 3)}
    own = dampen(f.knows(), f.asked(0), f.asked(1, 2, 3), **how).on(f.knows())
    frame = compare_models(own, f.knows(), f.asked(*CLASSES), labels=CLASSES).to_frame(0).set_index("site")
    assert frame.loc[f"L0.H{f.ALONE}.z", ["estimate", "probe"]].to_numpy() == pytest.approx(1, abs=1e-3)


def test_positions_are_averaged() -> None:
    m, ids = attached("llama"), torch.randint(5, 90, (4, 6), generator=torch.Generator().manual_seed(0))
    other = attached("llama")
    found = compare_models(m, other, {"input_ids": ids}, positions=[1, 2], sites="L1.resid_post")
    assert found.sites == ("L1.resid_post",)
    x = m.run({"input_ids": ids}, record="L1.resid_post")["L1.resid_post"][:, 1:3].mean(1)
    assert float(found.cka[0]) == pytest.approx(by_kernels(x.double(), x.double()))


def test_it_is_read_back_and_shown(tmp_path: Path) -> None:
    found = compare_models(f.knows(), f.knows(), f.asked(*CLASSES), labels=CLASSES)
    found.save(tmp_path)
    again = interp.open(tmp_path)
    assert isinstance(again, ModelsCompared)
    assert again.labels == found.labels
    assert torch.equal(again.right, found.right)
    assert found.plot(of=0).data
    assert len(found.top(2)) == 2
    assert "least alike" in repr(found)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"labels": [0, 1]}, "one whole number"),
        ({"labels": [-1] * 16}, "from 0"),
        ({"labels": CLASSES, "folds": 1}, "at least 2"),
        ({"sites": "L0.H*.pattern"}, "no vectors"),
        ({"positions": "image"}, "image"),
    ],
)
def test_what_makes_no_sense_is_refused(how: dict[str, Any], said: str) -> None:
    with pytest.raises(InterpError, match=said):
        compare_models(f.knows(), f.knows(), f.asked(*CLASSES), **how)


def test_models_that_are_built_otherwise_are_refused() -> None:
    with pytest.raises(InterpError, match="other towers"):
        compare_models(f.knows(), attached("llama"), f.asked(*CLASSES))


def test_one_example_and_a_label_that_nothing_has_are_refused() -> None:
    with pytest.raises(InterpError, match="at least two"):
        compare_models(f.knows(), f.knows(), f.asked(0))
    with pytest.raises(InterpError, match="no example has the label 9"):
        compare_models(f.knows(), f.knows(), f.asked(*CLASSES), labels=CLASSES).to_frame(9)
