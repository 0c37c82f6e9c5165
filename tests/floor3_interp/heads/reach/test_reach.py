"""Sets of heads, backups, and the words of heads: planted gates have the answers worked out beforehand; oracles in
float64."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import planted_functions as plan
import pytest
import torch
from models import attached, planted
from torch import Tensor

import interp
from interp.heads.reach.atoms import pursued, spanned
from interp.heads.reach.together import Together
from interp.hooks.errors import InputsError, SiteError
from interp.planted.probes import probe_task
from interp.prompts.rows import Row
from interp.tasks.task import Task


@cache
def gate(name: str, *, denoise: bool = True) -> Together:
    task = probe_task(f"planted-{name}", model=planted(f"planted-{name}"))
    base, source = (task.corrupt, task.clean) if denoise else (task.clean, task.corrupt)
    return interp.heads.together(task.model, base=base, source=source, metric=task.metric, most=2, draws=2)


def test_heads_that_are_needed_together_are_found_by_their_pair() -> None:
    """AND, denoising: each alone does 0 and both do 2, which is all of it."""
    found = gate("and")
    assert found.order == (("L0.H1", "L0.H2"),)
    row = found.interactions().iloc[0]
    assert (row["a"], row["b"]) == ("L0.H1", "L0.H2")
    assert [round(float(row[n]), 4) for n in ("effect_a", "effect_b", "joint", "interaction")] == [0, 0, 2, 2]
    assert found.to_frame()["share"].iloc[-1] == pytest.approx(1, abs=1e-4)
    assert found.to_frame()["random"].iloc[-1] == pytest.approx(0, abs=1e-4)


def test_heads_that_do_for_each_other_have_less_than_their_sum() -> None:
    """OR, denoising: each alone does 2, both together 2; noising them one at a time is missed, the pair is not."""
    assert float(gate("or").interactions().iloc[0]["interaction"]) == pytest.approx(-2, abs=1e-4)
    back = gate("or", denoise=False)
    assert back.order == (("L0.H1", "L0.H2"),)
    assert float(back.to_frame()["effect"].iloc[-1]) == pytest.approx(-2, abs=1e-4)


def test_joint_effects_are_those_of_runs_with_both_heads_set() -> None:
    m = attached("llama")
    rows = tuple(Row(tuple(range(i, i + 6)), tuple(range(i + 9, i + 15)), (7,), (8,)) for i in (10, 30))
    task = Task("ids", rows).on(m)
    found = interp.heads.together(
        m, base=task.clean, source=task.corrupt, metric=task.metric, heads=["L0.H1", "L1.H2", "L1.H3"], most=3, draws=0
    )
    tape = m.run(task.corrupt, record=["L0.z", "L1.z"])
    edits = [interp.Set("L0.H1.z", tape["L0.H1.z"]), interp.Set("L1.H2.z", tape["L1.H2.z"])]
    after = task.metric(m.run(task.clean, edits=edits)["logits"], task.clean)
    before = task.metric(m.run(task.clean)["logits"], task.clean)
    assert torch.allclose(found.joint[0].double(), (after - before).double(), atol=1e-5)
    assert len([name for added in found.order for name in added]) == 3


def test_the_planted_backup_takes_over_what_was_worked_out() -> None:
    """Zeroing the primary costs 0.5 of its 2: the backup steps in with 1.5."""
    task = probe_task("planted-backup", model=planted("planted-backup"))
    found = interp.heads.backups(task.model, task.clean, "L0.H1", metric=task.metric)
    assert found.top(1)["site"].iloc[0] == "L1.H2"
    assert float(found.values[found.parts.index("L1.H2.result")]) == pytest.approx(1.5, abs=1e-4)
    assert float(found.lost) == pytest.approx(2, abs=1e-4)
    assert float(found.effect) == pytest.approx(-0.5, abs=1e-4)
    assert float(found.repair) == pytest.approx(1.5, abs=1e-4)
    assert float(interp.heads.backups(task.model, task.clean, "L1.H2", metric=task.metric).repair) == pytest.approx(0)


def test_what_is_taken_over_adds_up_to_the_repair() -> None:
    m = attached("gpt2")
    rows = tuple(Row(tuple(range(i, i + 6)), tuple(range(i + 9, i + 15)), (7,), (8,)) for i in (10, 30))
    task = Task("ids", rows).on(m)
    for how in ("zero", "mean"):
        found = interp.heads.backups(m, task.clean, ["L0.H1", "L0.H2"], metric=task.metric, how=how)
        gone = [n for n, part in enumerate(found.parts) if part in ("L0.H1.result", "L0.H2.result")]
        rest = [n for n in range(len(found.parts)) if n not in gone]
        left = found.after[gone].sum(0)  # of a mean something is still written
        assert torch.allclose(found.values[rest].sum(0) + left, found.repair, atol=1e-5), how
        assert not set(found.sites) & {"L0.H1", "L0.H2"}


def direct(vectors: Tensor, directions: Tensor, count: int) -> list[int]:
    """SOMP by its definition, least squares by the pseudo-inverse."""
    chosen: list[int] = []
    left = vectors.clone()
    for _ in range(count):
        scores = [float((left @ d).abs().sum()) if n not in chosen else -1.0 for n, d in enumerate(directions)]
        chosen.append(max(range(len(scores)), key=scores.__getitem__))
        basis = directions[chosen]
        left = vectors - vectors @ torch.linalg.pinv(basis) @ basis
    return [*chosen, float(left.square().sum())]  # type: ignore[list-item]


def test_pursuit_is_its_definition_and_finds_planted_atoms() -> None:
    g = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(40, 12, generator=g, dtype=torch.double), dim=1)
    vectors = torch.randn(20, 3, generator=g, dtype=torch.double) @ directions[[5, 17, 30]]
    ids, left = pursued(vectors, directions, 3)
    assert float(left[-1].abs().max()) < 1e-9 or len(set(ids.tolist())) == 3
    noisy = vectors + 0.3 * torch.randn(20, 12, generator=g, dtype=torch.double)
    ids, left = pursued(noisy, directions, 6)
    *expected, rest = direct(noisy, directions, 6)
    assert ids.tolist() == expected
    assert float(left[-1].square().sum()) == pytest.approx(rest)


def test_a_text_basis_takes_the_most_varied_direction_out_of_both_sides() -> None:
    g = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(30, 8, generator=g, dtype=torch.double), dim=1)
    vectors = torch.randn(25, 8, generator=g, dtype=torch.double)
    vectors -= vectors.mean(0)
    ids, left = spanned(vectors, directions, 4)
    texts, rest = directions.clone(), vectors.clone()
    for n, best in enumerate(ids.tolist()):
        variances = (rest @ texts.T).var(0, unbiased=False)
        assert best == int(variances.argmax())
        one = texts[best] / texts[best].norm()
        rest, texts = rest - rest @ torch.outer(one, one), texts - texts @ torch.outer(one, one)
        assert torch.allclose(left[n], rest, atol=1e-9)


@cache
def functions() -> interp.Model:
    return interp.attach(*plan.build())


def prompts() -> Any:
    names = [(a, b) for a in plan.NAMES for b in plan.NAMES if a != b][:12]
    return functions().prepare([f"{a} and {b} {b} to" for a, b in names])


def test_the_mover_speaks_of_names_and_silencing_it_silences_them() -> None:
    m, x = functions(), prompts()
    found = interp.heads.pursuit(m, x, words=[f" {n}" for n in plan.NAMES], atoms=5, positions="last", draws=3)
    share = dict(zip(found.sites, found.explained[:, -1].tolist(), strict=True))
    assert share["L2.H0"] == pytest.approx(1, abs=1e-3)
    assert share["L1.H3"] == share["L0.H3"] == 0  # nothing is written, and nothing explained
    assert set(found.words("L2.H0")) <= {*plan.NAMES, *(f" {n}" for n in plan.NAMES)}
    at = found.sites.index("L2.H0")
    assert float(found.random[at].max()) < 0.9 * share["L2.H0"]
    (edit,) = found.edits(factor=0.0, heads=1)
    assert edit.site in ("L2.H0.z", "L2.H1.z")
    said = m.run(x, edits=[interp.Scale("L2.H0.z", -1.0)])["logits"][:, -1].argmax(-1)
    assert not set(said.tolist()) & set(plan.token(*plan.NAMES))


def test_classes_of_a_picture_are_words_too() -> None:
    m = planted("planted-vit")
    from models import trial

    x = trial("vit", Path()).base
    for method in ("somp", "textspan"):
        found = interp.heads.pursuit(m, x, atoms=2, positions="cls", method=method)
        assert found.sites[int(found.explained[:, -1].argmax())] == "L1.H2", method
        assert set(found.words("L1.H2")) <= {"red", "green", "blue", "yellow"}
    own = interp.heads.pursuit(m, x, atoms=1, positions="cls", dictionary=torch.eye(64)[:8])
    assert own.words("L1.H2")[0].isdigit()


def test_they_are_saved_and_read_back(tmp_path: Path) -> None:
    task = probe_task("planted-backup", model=planted("planted-backup"))
    results = (gate("and"), interp.heads.backups(task.model, task.clean, "L0.H1", metric=task.metric),
               interp.heads.pursuit(functions(), prompts(), "L2.H*", atoms=2))  # fmt: skip
    for n, one in enumerate(results):
        one.save(tmp_path / str(n))
        again = interp.open(tmp_path / str(n))
        assert again.to_frame().equals(one.to_frame())
        assert again.plot().data
        assert repr(again) == repr(one)


def test_wrong_input_is_refused() -> None:
    m, x = functions(), prompts()
    with pytest.raises(InputsError, match="method is one of"):
        interp.heads.pursuit(m, x, method="omp")
    with pytest.raises(InputsError, match="atoms is 1 to the 2 rows"):
        interp.heads.pursuit(m, x, words=[" Ann", " Bob"], atoms=3)
    with pytest.raises(InputsError, match=r"\[row, 240\]"):
        interp.heads.pursuit(m, x, dictionary=torch.eye(3))
    with pytest.raises(InputsError, match="at least two rows"):
        interp.heads.pursuit(m, m.prepare(["Ann to"]), positions="last")
    task = probe_task("planted-and", model=planted("planted-and"))
    how: dict[str, Any] = {"base": task.corrupt, "source": task.clean, "metric": task.metric}
    with pytest.raises(InputsError, match="2 to 8 heads"):
        interp.heads.together(task.model, **how, most=9)
    with pytest.raises(SiteError, match="head"):
        interp.heads.backups(task.model, task.clean, "L9.H9", metric=task.metric)
    with pytest.raises(InputsError, match="how='zero' or 'mean'"):
        interp.heads.backups(task.model, task.clean, "L0.H1", metric=task.metric, how="noise")
