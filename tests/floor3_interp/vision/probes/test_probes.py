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
from interp.vision.probes.learned import Concept, density, nearest, stable
from interp.vision.probes.mixture import Mixture, log_normal
from interp.vision.probes.probe import _scores, _trained
from interp.vision.probes.readers import Decoder, Reader
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
    reader = Reader(12, 3, queries=2, d_out=2).eval()
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
    got = interp.vision.probe(model, task.clean, site="L2.resid_post", targets=labels, seeds=(0,), epochs=80)
    assert got.classes
    assert float(got.scores.mean()) > 0.6
    mixed = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    chance = interp.vision.probe(model, task.clean, site="L2.resid_post", targets=mixed, seeds=(0,), epochs=80)
    assert float(chance.scores.mean()) < 0.35
    assert got.looks.shape == (160, 8, 36)
    torch.testing.assert_close(got.looks.sum(-1), torch.ones(160, 8))
    assert float(got.map(2, 5).sum()) == pytest.approx(1, abs=1e-4)
    again = interp.vision.probe(model, task.clean, site="L2.resid_post", targets=labels, seeds=(0,), epochs=80)
    assert torch.equal(again.looks, got.looks)


def test_every_query_finds_the_patch_its_target_is_planted_in() -> None:
    model, planted = seen()[0], [7, 22]
    x, site = interp.tasks.shapes(model, n=240).clean, "L0.H0.z"
    _, _, tokens, places = picture_tokens(model, x, site)
    _, _, axes = torch.linalg.svd(tokens.flatten(0, 1) - tokens.mean((0, 1)), full_matrices=False)
    targets = torch.stack([(tokens[:, p] - tokens[:, p].mean(0)) @ axes[0] for p in planted], 1)
    how: dict[str, Any] = {"own": True, "places": True, "epochs": 300, "rate": 0.1, "seeds": [0]}
    got = interp.vision.probe(model, x, site=site, targets=targets / targets.std(0), **how)
    assert not got.classes
    assert float(got.scores) > 0.85
    assert float(got.scores) > float(got.baseline) + 0.15
    for query, patch in enumerate(planted):
        assert int(got.looks.mean(0)[query].argmax()) == patch
        assert float(got.looks.mean(0)[query, patch]) > 0.4
    assert places[0, 7].tolist() == [1, 1]


def test_targets_of_a_region_read_its_query_alone() -> None:
    torch.manual_seed(2)
    reader = Reader(12, 5, queries=2, d_out=1, regions=(0, 1, 1, 0, 1)).eval()
    for parameter in reader.parameters():
        torch.nn.init.normal_(parameter)
    x, keys = torch.randn(3, 4, 12), torch.randn(3, 4, 12)
    got = reader(x, keys)
    for n in range(3):
        for target, region in enumerate((0, 1, 1, 0, 1)):
            a = (keys[n] @ reader.queries[region] * 12**-0.5).softmax(0)
            z = a @ (x[n] @ reader.values.weight.T) / (1 + 1e-6) ** 0.5
            torch.testing.assert_close(got[n, target], reader.head[target] @ z + reader.bias[target])


def test_the_decoder_is_detrs_layer_written_out() -> None:
    torch.manual_seed(3)
    decoder = Decoder(8, 3, queries=2, regions=(0, 1, 1), heads=2, wide=16, dropout=0.1).double().eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, keys = torch.randn(2, 5, 8).double(), torch.randn(2, 5, 8).double()

    def attention(a: Any, q: Any, k: Any, v: Any) -> Any:
        wq, wk, wv = a.in_proj_weight.split(8)
        bq, bk, bv = a.in_proj_bias.split(8)
        q, k, v = q @ wq.T + bq, k @ wk.T + bk, v @ wv.T + bv
        parts, maps = [], []
        for h in (slice(0, 4), slice(4, 8)):
            w = (q[:, h] @ k[:, h].T / 2).softmax(-1)
            parts.append(w @ v[:, h])
            maps.append(w)
        return torch.cat(parts, 1) @ a.out_proj.weight.T + a.out_proj.bias, sum(maps) / 2

    def norm(n: int, value: Any) -> Any:
        flat = (value - value.mean(-1, keepdim=True)) / (value.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return flat * decoder.norms[n].weight + decoder.norms[n].bias

    u, got, looks = decoder.queries, decoder(x, keys), decoder.looks(x, keys)
    for n in range(2):
        h = norm(0, attention(decoder.own, u, u, torch.zeros_like(u))[0])
        read, seen_at = attention(decoder.cross, h + u, keys[n], x[n])
        h = norm(1, h + read)
        inner = (h @ decoder.mlp[0].weight.T + decoder.mlp[0].bias).relu()
        h = norm(3, norm(2, h + inner @ decoder.mlp[3].weight.T + decoder.mlp[3].bias))
        expected = [decoder.head[t] @ h[r] + decoder.bias[t] for t, r in enumerate((0, 1, 1))]
        torch.testing.assert_close(got[n], torch.stack(expected))
        torch.testing.assert_close(looks[n], seen_at)


def test_a_decoder_finds_the_patch_that_a_region_was_made_from() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 6, 8)
    keys, fit = x + 4 * torch.eye(6, 8), torch.arange(200) < 150
    targets = torch.cat([x[:, p] @ torch.randn(8, 2) for p in (1, 4)], 1)
    how = {"outputs": 4, "queries": 2, "regions": (0, 0, 1, 1), "heads": 2, "wide": 32, "dropout": 0.1}
    plan: dict[str, Any] = {"epochs": 100, "rate": 0.02, "decay": 1e-4, "seed": 0}
    trained = _trained(Decoder, how, x, keys, targets / targets.std(0), fit, False, **plan)
    _, each = _scores(trained, x, keys, targets / targets.std(0), ~fit, False)
    assert float(each.min()) > 0.85
    assert trained.looks(x, keys).mean(0).argmax(-1).tolist() == [1, 4]


def test_voxels_are_read_by_region_in_a_model() -> None:
    model, task, _ = seen()
    x, site = task.clean, "L1.resid_post"
    targets = torch.randn(160, 4, generator=torch.Generator().manual_seed(0))
    how: dict[str, Any] = {"places": True, "seeds": (0, 1), "site": site, "targets": targets, "epochs": 2}
    got = interp.vision.probe(model, x, regions=(0, 0, 1, 1), decoder=True, **how)
    assert got.looks.shape == (160, 2, 36)
    torch.testing.assert_close(got.looks.sum(-1), torch.ones(160, 2))
    assert got.by_target.shape == (2, 4)
    torch.testing.assert_close(got.by_target.mean(1), got.scores)
    assert (got.meta["method"], got.meta["regions"]) == ("brain encoder", [0, 0, 1, 1])
    same = interp.vision.probe(model, x, regions=range(4), **how)
    assert torch.equal(same.looks, interp.vision.probe(model, x, own=True, **how).looks)
    with pytest.raises(InputsError, match="give regions=, or own=True"):
        interp.vision.probe(model, x, site=site, targets=targets, decoder=True)
    with pytest.raises(InputsError, match="for each of 4 targets, none left out"):
        interp.vision.probe(model, x, site=site, targets=targets, regions=(0, 2, 0, 2))
    with pytest.raises(InputsError, match="must divide the width 64; got 7"):
        interp.vision.probe(model, x, site=site, targets=targets, own=True, decoder=True, attention_heads=7)


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


def test_what_is_learned_beside_the_mixture_is_the_formula() -> None:
    torch.manual_seed(5)
    tokens, like = torch.randn(3, 4, 6).double(), torch.randn(5, 4, 6).double()
    a = torch.randn(4, 2, 2).double()
    model = Concept(torch.randn(6, 2).double(), torch.randn(4, 2).double(), torch.linalg.cholesky(a @ a.mT), 3)
    torch.nn.init.normal_(model.eta)
    model.requires_grad_(False)
    white = model.small(like, like).flatten(0, 1)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(2).double(), atol=1e-3, rtol=0)
    e, w = model.small(tokens, like), torch.rand(3, 4).double()
    lower = model.lower.tril(-1) + torch.diag_embed(model.lower.diagonal(dim1=1, dim2=2) + 1e-2)
    logs = log_normal(e, model.means, lower @ lower.mT)
    phi, gamma, found = model.mixtures(e, w, 2.0)
    torch.testing.assert_close(found, logs)
    guess = torch.full((3, 4), 3.0).double()
    for _ in range(5):
        some = (torch.digamma(guess)[:, None] + logs).softmax(-1)
        guess = 2 + (w[..., None] * some).sum(1)
    torch.testing.assert_close((gamma, phi), (guess, (torch.digamma(guess)[:, None] + logs).softmax(-1)))
    torch.testing.assert_close(model.said(phi).exp().sum(-1), torch.ones(3).double())
    theta, dense = guess / guess.sum(1, keepdim=True), 0.0
    for n in range(3):
        for j in range(4):
            dense += float((theta[n] * logs[n, j].exp()).sum().log()) / 12
    assert float(density(gamma, found)) == pytest.approx(dense, abs=1e-9)
    other = torch.rand(3, 4).double()
    cosines = torch.nn.functional.cosine_similarity(guess[:, None], other[None], dim=-1)
    assert float(stable(guess, other)) == pytest.approx(-float((cosines / 0.1).log_softmax(1).diagonal().mean()))
    assert nearest(guess, other) == float((cosines.argmax(1) == torch.arange(3)).double().mean())


def test_learning_makes_concepts_say_more_of_what_the_model_answers() -> None:
    model, task, _ = seen()
    how: dict[str, Any] = {"site": "L2.resid_pre", "k": 12, "dim": 6, "steps": 4, "seeds": (0,)}
    before = interp.vision.concepts(model, task.clean, **how)
    after = interp.vision.concepts(model, task.clean, learn=60, rate=0.03, **how)
    assert float(after.faithfulness) > float(before.faithfulness) + 0.1
    assert float(after.stability) > 0.5
    torch.testing.assert_close(after.phi.sum(-1), torch.ones(160, 36).double())


def test_concepts_of_a_trained_model_say_what_it_answers() -> None:
    model, task, _ = seen()
    got = interp.vision.concepts(model, task.clean, site="L2.resid_pre", k=16, dim=8, steps=5, seeds=(0,))
    answers = model.run(task.clean)["logits"].argmax(-1)
    most = float(torch.bincount(answers).max()) / len(answers)
    assert float(got.faithfulness.mean()) > most + 0.1
    torch.testing.assert_close(got.phi.sum(-1), torch.ones(160, 36).double())
    assert float(got.map(0, 3).sum()) == pytest.approx(float(got.phi[3, :, 0].sum()), rel=1e-4)
    assert list(got.to_frame()["concept"]) == list(range(16))


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
    with pytest.raises(InputsError, match="one query a target or region, 2"):
        interp.vision.probe(model, x, targets=torch.rand(160, 2), own=True, queries=3, **how)
    with pytest.raises(InputsError, match="held_out= is a share"):
        interp.vision.probe(model, x, targets=labels, held_out=1.0, **how)
    with pytest.raises(InputsError, match="of at least two"):
        interp.vision.probe(model, x, targets=[0] * 160, **how)
    with pytest.raises(InputsError, match="learn= at least 0"):
        interp.vision.concepts(model, x, learn=-1, **how)
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
