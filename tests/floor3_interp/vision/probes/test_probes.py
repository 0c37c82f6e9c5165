"""Probes against their formulas, on targets that are planted in one patch, and concepts on clusters that are known."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from looking import PLACES, family, picture
from pictured import PROCESSOR

import interp
from interp.hooks.errors import InputsError
from interp.vision.probes.concepts import Mixture, log_normal
from interp.vision.probes.probe import Reader
from interp.vision.probes.tokens import picture_tokens

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:transformers.models.paligemma"),
    pytest.mark.filterwarnings("ignore:.*two BOS"),
]


@cache
def seen() -> tuple[interp.Model, Any, torch.Tensor]:
    model = interp.load("zoo:shapes-vit")
    task = interp.tasks.shapes(model, n=160)
    labels = torch.tensor([row[0] for row in task.answer_ids])
    return model, task, labels


def test_the_reader_is_the_formula() -> None:
    torch.manual_seed(1)
    reader = Reader(12, 3, queries=2, d_out=2, own=False).eval()
    for parameter in reader.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(4, 5, 12)
    got = reader(x, x)
    for n in range(4):
        values = x[n] @ reader.values.weight.T  # [5, 6], three columns a query
        parts = []
        for m in range(2):
            a = (x[n] @ reader.queries[m] * 12**-0.5).softmax(0)
            parts.append(a @ values[:, 3 * m : 3 * m + 3])
        z = torch.cat(parts) / (1 + 1e-6) ** 0.5
        torch.testing.assert_close(got[n], reader.head @ z + reader.bias)
    assert sum(p.numel() for p in (reader.queries, reader.values.weight)) == 2 * 12 + 12**2 // 2


def test_shapes_are_read_off_the_last_layer_and_not_off_shuffled_labels() -> None:
    model, task, labels = seen()
    got = interp.vision.probe(model, task.clean, site="L2.resid_post", targets=labels, seeds=(0, 1))
    assert got.classes
    assert float(got.scores.mean()) > 0.6
    mixed = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    chance = interp.vision.probe(model, task.clean, site="L2.resid_post", targets=mixed, seeds=(0, 1))
    assert float(chance.scores.mean()) < 0.35
    assert got.looks.shape == (160, 8, 36)
    torch.testing.assert_close(got.looks.sum(-1), torch.ones(160, 8))
    assert float(got.map(2, 5).sum()) == pytest.approx(1, abs=1e-4)
    again = interp.vision.probe(model, task.clean, site="L2.resid_post", targets=labels, seeds=(0, 1))
    assert torch.equal(again.looks, got.looks)


def test_every_query_finds_the_patch_its_target_is_planted_in() -> None:
    model, planted = seen()[0], [7, 22]
    x, site = interp.tasks.shapes(model, n=400).clean, "L0.H0.z"
    _, _, tokens, places = picture_tokens(model, x, site)
    _, _, axes = torch.linalg.svd(tokens.flatten(0, 1) - tokens.mean((0, 1)), full_matrices=False)
    targets = torch.stack([(tokens[:, p] - tokens[:, p].mean(0)) @ axes[0] for p in planted], 1)
    how: dict[str, Any] = {"own": True, "places": True, "epochs": 900, "rate": 0.05, "seeds": [0]}
    got = interp.vision.probe(model, x, site=site, targets=targets / targets.std(0), **how)
    assert not got.classes
    assert float(got.scores) > 0.85
    assert float(got.scores) > float(got.baseline) + 0.15
    for query, patch in enumerate(planted):
        assert int(got.looks.mean(0)[query].argmax()) == patch
        assert float(got.looks.mean(0)[query, patch]) > 0.4
    assert places[0, 7].tolist() == [1, 1]


def test_a_head_and_a_class_token_can_be_read() -> None:
    model, task, labels = seen()
    got = interp.vision.probe(model, task.clean, site="L1.H1.z", targets=labels, seeds=[0], epochs=2)
    assert got.looks.shape[-1] == 36
    more = interp.vision.probe(
        model, task.clean, site="L1.H1.z", targets=labels, seeds=[0], epochs=2, with_class=True, queries=4, d_out=2
    )
    assert more.looks.shape[1:] == (4, 37)
    assert bool(more.boxes[:, 0].isnan().all())


def test_densities_and_steps_are_the_formula() -> None:
    torch.manual_seed(3)
    e, means = torch.randn(2, 4, 3).double(), torch.randn(5, 3).double()
    a = torch.randn(5, 3, 3).double()
    covariances = a @ a.transpose(1, 2) + torch.eye(3).double()
    got = log_normal(e, means, covariances)
    for k in range(5):
        true = torch.distributions.MultivariateNormal(means[k], covariances[k]).log_prob(e)
        torch.testing.assert_close(got[..., k], true)


def test_known_clusters_are_the_concepts() -> None:
    torch.manual_seed(0)
    centres = torch.tensor([[6.0, 0, 0], [0, 6, 0], [0, 0, 6]]).double()
    kinds = torch.randint(0, 3, (30, 20))
    e = centres[kinds] + 0.5 * torch.randn(30, 20, 3).double()
    w = torch.ones(30, 20).double()
    found = max((Mixture.fitted(e, w, 3, 2.0, 15, seed) for seed in range(4)), key=lambda one: one.bound)
    order = torch.cdist(centres, found.means).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2]
    assert torch.equal(found.phi.argmax(-1), order[kinds])
    share = torch.stack([(kinds == n).double().mean(1) for n in range(3)], 1)
    expected = (2 + 20 * share) / 26
    theta = found.gamma / found.gamma.sum(1, keepdim=True)
    torch.testing.assert_close(theta[:, order], expected, atol=0.01, rtol=0.01)
    torch.testing.assert_close(found.gamma, 2 + found.phi.sum(1), atol=1e-6, rtol=1e-6)


def test_concepts_of_a_trained_model_say_what_it_answers() -> None:
    model, task, _ = seen()
    got = interp.vision.concepts(model, task.clean, site="L2.resid_pre", k=24, dim=12, seeds=(0, 1))
    answers = model.run(task.clean)["logits"].argmax(-1)
    most = float(torch.bincount(answers).max()) / len(answers)
    assert float(got.faithfulness.mean()) > most + 0.1
    torch.testing.assert_close(got.phi.sum(-1), torch.ones(160, 36).double())
    assert float(got.map(0, 3).sum()) == pytest.approx(float(got.phi[3, :, 0].sum()), rel=1e-4)
    assert list(got.to_frame()["concept"]) == list(range(24))


FAMILIES = ["llava", "internvl", "paligemma", "smolvlm", "gemma3", "llava_next", "mllama", "blip-2"]


@pytest.mark.parametrize("name", FAMILIES)
def test_towers_of_families_are_read_by_tile(name: str) -> None:
    held, text = family(name), f"{PLACES[PROCESSOR.get(name, name)]}What is it?"
    x = held.prepare([text] * 6, images=[[picture(50, 50, n)] for n in range(6)], chat=False)
    rows = x.tower("vision").batch
    how: dict[str, Any] = {"targets": [n % 2 for n in range(rows)], "epochs": 2, "seeds": [0], "held_out": 0.5}
    got = interp.vision.probe(held, x, site="vision.L0.resid_post", **how)
    assert got.looks.shape[0] == rows


def test_bad_input_is_refused() -> None:
    model, task, labels = seen()
    x, how = task.clean, {"site": "L1.resid_post"}
    with pytest.raises(InputsError, match="is one place"):
        interp.vision.probe(model, x, site="L*.resid_post", targets=labels)
    with pytest.raises(InputsError, match="for each of 160 examples"):
        interp.vision.probe(model, x, targets=labels[:5], **how)
    with pytest.raises(InputsError, match="queries= must divide"):
        interp.vision.probe(model, x, targets=labels, queries=7, **how)
    with pytest.raises(InputsError, match="d_out= must divide"):
        interp.vision.probe(model, x, targets=labels, d_out=7, **how)
    with pytest.raises(InputsError, match="targets= are numbers"):
        interp.vision.probe(model, x, targets=labels, own=True, **how)
    with pytest.raises(InputsError, match="one query a target, 2"):
        interp.vision.probe(model, x, targets=torch.rand(160, 2), own=True, queries=3, **how)
    with pytest.raises(InputsError, match="held_out= is a share"):
        interp.vision.probe(model, x, targets=labels, held_out=1.0, **how)
    with pytest.raises(InputsError, match="of at least two"):
        interp.vision.probe(model, x, targets=[0] * 160, **how)
    with pytest.raises(InputsError, match="k= is 1 to"):
        interp.vision.concepts(model, x, k=0, **how)
    held = family("paligemma")
    y = held.prepare(["<image>a"] * 2, images=[[picture(50, 50, n)] for n in range(2)], chat=False)
    with pytest.raises(InputsError, match="has no class token"):
        interp.vision.probe(held, y, site="vision.L0.resid_post", targets=[0, 1], with_class=True)


def test_results_are_saved_and_read_back(tmp_path: Path) -> None:
    model, task, labels = seen()
    one = interp.vision.probe(model, task.clean, site="L1.H1.z", targets=labels, seeds=[0], epochs=2)
    other = interp.vision.concepts(model, task.clean, site="L1.H1.z", k=3, dim=4, steps=2, seeds=[0])
    for n, got in enumerate((one, other)):
        got.save(tmp_path / str(n))
        assert repr(interp.open(tmp_path / str(n))) == repr(got)
