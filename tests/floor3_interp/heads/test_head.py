"""A head's card says what each method says by itself; what has no meaning is named; strings of strangers do no harm."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from models import attached

import interp
from interp.explorer.page import page
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.examples.example import example
from interp.kernels.errors import InterpError
from interp.planted import build
from interp.results.card import HeadCard, Look, Number

TEXTS = ["fox apple lake stone moon fox", "lake = stone , fox = apple , lake ="]


@cache
def planted() -> interp.Model:
    return interp.attach(*build("planted-decoder"))


@cache
def card() -> HeadCard:
    return interp.head(planted(), "L1.H4", TEXTS)


def test_the_card_says_what_the_methods_say() -> None:
    m, one = planted(), card()
    roles = interp.head_roles(m, TEXTS)
    for kind, value in roles.describe("L1.H4").items():
        assert one[kind].value == pytest.approx(value, abs=1e-6)
    assert (one["induction @ repeated"].rank, one["induction @ repeated"].of) == (1, 12)
    assert one.roles[0].name == "induction @ repeated"
    weights = interp.heads.head_circuits(m, "L1.H4")
    for name, score in weights.scores.items():
        assert one[name].value == pytest.approx(float(score[0]))
    assert list(one.promotes) == [tuple(row) for row in weights.tokens()[lambda t: t["sign"] == "promoted"][
        ["source", "target", "logit"]].itertuples(index=False)]  # fmt: skip
    sink = interp.sinks(m, TEXTS, heads="L1.H4", activations=False)
    assert one["weight on the first token (sink)"].value == pytest.approx(float(sink.first.mean()), abs=1e-6)
    assert "L1.H4" in one.finding
    assert "induction" in repr(one)


def test_effects_are_on_the_metric_that_is_given() -> None:
    m = planted()
    task = interp.tasks.induction(m, n=4, length=6)
    one = interp.head(m, "L1.H4", task)
    direct = interp.patching.direct_effect(m, task.clean, metric=task.metric)
    assert one["direct effect"].value == pytest.approx(float(direct.mean[direct.sites.index("L1.H4.result")]), abs=1e-5)
    for source in ("mean", "zero"):
        gone = interp.patch(m, base=task.clean, source=source, metric=task.metric, sites="L1.H4.z")
        assert one[f"{source} ablation"].value == pytest.approx(float(gone.mean[0]), abs=1e-5)
    assert one["zero ablation"].value == pytest.approx(-one["direct effect"].value, abs=1e-4)
    assert one["zero ablation"].low <= one["zero ablation"].value <= one["zero ablation"].high
    null = interp.head(m, "L1.H0", task)
    assert null["zero ablation"].value == 0.0
    assert repr(task.metric) == one.meta["metric"]


def test_where_the_head_looks_is_its_pattern() -> None:
    m, one = planted(), card()
    x = m.inputs(TEXTS)
    assert x.tokens is not None
    pattern = m.run(x, record="L1.H4.pattern")["L1.H4.pattern"][:, 0]
    for b, (tokens, weights) in enumerate(zip(one.examples, one.patterns, strict=True)):
        real = x.valid[b].nonzero().flatten()
        assert list(tokens) == [x.tokens[b][i] for i in real]
        torch.testing.assert_close(torch.tensor(weights), pattern[b][real][:, real], atol=1e-6, rtol=1e-5)
    best = one.looks[0]
    assert (best.row_token.strip(), best.key_token.strip()) == ("fox", "apple")
    for look in one.looks:
        assert look.weight == pytest.approx(float(pattern[look.example, look.row, look.key]), abs=1e-6)
        assert look.key != look.row
        assert look.key != int(x.valid[look.example].int().argmax())
    assert [look.weight for look in one.looks] == sorted((look.weight for look in one.looks), reverse=True)


def test_it_is_plain_data_that_the_page_takes(tmp_path: Path) -> None:
    told = card().to_dict()
    assert json.loads(json.dumps(told))["title"] == "L1.H4 of GPT2LMHeadModel"
    assert "L1.H4" in page(told)
    assert json.loads(card().save(tmp_path / "card.json").read_text())["finding"] == card().finding
    frame = card().to_frame()
    assert {"site", "method", "estimate", "low", "high", "n"} <= set(frame.columns)
    assert not frame[["estimate", "low", "high"]].isna().any(axis=None)


def test_strings_of_strangers_do_no_harm() -> None:
    bad = "<img src=x onerror=alert(1)>"
    look = Look(0, 1, bad, 0, "y" * 10_000, 0.5)
    number = Number(bad, 1.0, 1.0, 1.0, 1)
    one = HeadCard("L0.H0", bad, roles=(number,), promotes=((bad, bad, 1.0),), looks=(look,),
                   examples=((bad, "b"),), patterns=(((1.0, 0.0), (0.5, 0.5)),), left_out={"tokens": bad})  # fmt: skip
    shown = one._repr_mimebundle_()
    assert "<img" not in shown["text/html"]
    assert "&lt;img" in shown["text/html"]
    assert len(shown["text/html"]) < 6000
    assert shown["text/plain"] == repr(one)


def test_a_head_of_a_picture_tower_has_what_has_a_meaning_there() -> None:
    m = interp.attach(*build("planted-vit"))
    one = interp.head(m, "L1.H2", dict(example(m.module, batch=2)))
    assert {number.name for number in one.roles} == {"self", "positional", "local", "broadcast"}
    assert "patches" in one.left_out["induction"]
    assert not one.promotes
    assert one["direct effect"].value == pytest.approx(-one["zero ablation"].value, abs=1e-3)
    assert one.looks[0].row_token.endswith("cls 0")
    with pytest.raises(InterpError, match="patches"):
        one["induction"]
    assert len([line for line in repr(one).splitlines() if "patches of pictures" in line]) == 1


def test_towers_that_make_no_logits_say_so() -> None:
    m = interp.attach(*build("planted-lvlm"))
    one = interp.head(m, "vision.L1.H2", dict(example(m.module, batch=1)))
    assert "another tower" in one.left_out["direct effect"]
    assert one["zero ablation"].value == 0.0


def test_long_examples_have_their_largest_weights_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import import_module

    monkeypatch.setattr(import_module("interp.heads.head"), "SHOWN", 4)
    one = interp.head(planted(), "L1.H4", TEXTS)
    assert one.patterns == ()
    assert one.examples == ()
    assert [look.weight for look in one.looks] == pytest.approx([look.weight for look in card().looks], abs=1e-6)


def test_what_has_no_meaning_is_refused() -> None:
    m = planted()
    for site, data, kind, says in (
        ("L1", TEXTS, SiteError, "name one"),
        ("L1.H0-1", TEXTS, SiteError, "name one"),
        ("L1.H9", TEXTS, SiteError, "no head"),
        ("L1.H4", [], InputsError, "empty"),
    ):
        with pytest.raises(kind, match=says):
            interp.head(m, site, data)
    with pytest.raises(InterpError, match="nothing called"):
        card()["beauty"]
    assert "at least two tokens" in interp.head(attached("gpt2"), "L0.H0", torch.tensor([[5]])).left_out["roles"]


def test_in_words_it_says_where_the_weight_of_the_last_token_goes_and_what_is_written_there() -> None:
    m = planted()
    task = interp.tasks.induction(m, n=4, length=6)
    one, x = interp.head(m, "L1.H4", task), task.clean
    tape = m.run(x, record="L1.H4.pattern")
    groups = ("the first token", "itself", "words said more than once", "the token before",
              "punctuation and special tokens", "other tokens")  # fmt: skip
    shares: dict[str, list[float]] = {name: [] for name in groups}
    written, right = [], []
    for row in range(x.batch):
        real = x.valid[row].nonzero().flatten().tolist()
        ids, last = x.ids[row].tolist(), real[-1]
        a = tape["L1.H4.pattern"][row, 0, last].double()
        totals = dict.fromkeys(groups, 0.0)
        for key in real:
            word = bool(x.roles.where("text")[row, key])
            again = word and sum(ids[other] == ids[key] for other in real) > 1
            name = ("the first token" if key == real[0] else "itself" if key == last else
                    "words said more than once" if again else "the token before" if key == last - 1 else
                    "other tokens" if word else "punctuation and special tokens")  # fmt: skip
            totals[name] += float(a[key])
        for name, value in totals.items():
            shares[name].append(value)
        best = max((key for key in real[1:-1] if bool(x.roles.where("text")[row, key])), key=lambda key: float(a[key]))
        written.append(ids[best])
        right.append(float(sum(a[key] for key in real if ids[key] in task.answer_ids[row])))
    for name, values in shares.items():
        assert one[f"weight on {name}"].value == pytest.approx(sum(values) / len(values), abs=1e-6), name
    assert one["weight on the right answer"].value == pytest.approx(sum(right) / len(right), abs=1e-6)
    assert sum(one[f"weight on {name}"].value for name in groups) == pytest.approx(1, abs=1e-5)

    def over_the_mean(logits: torch.Tensor, inputs: object) -> torch.Tensor:
        last = logits[torch.arange(len(logits)), x.mask("last").int().argmax(1)]
        return last[torch.arange(len(last)), torch.tensor(written)] - last.mean(1)

    direct = interp.patching.direct_effect(m, x, metric=over_the_mean)
    expected = float(direct.mean[direct.sites.index("L1.H4.result")])
    assert one["writes to the word it looks at most"].value == pytest.approx(expected, abs=1e-4)
    assert f"{one['weight on the right answer'].value:.2f} to the words of the right answer" in " ".join(one.says)
    assert "raises the logit of the word it looks at most" in repr(one)


def test_a_picture_head_and_an_encoders_are_described_too() -> None:
    from encoders import headless, pairs

    seen = interp.head(headless("dinov2"), "L1.H2", pairs("dinov2")[0])
    groups = ("the class token", "itself", "patches that touch it", "other patches", "tokens that are no patch")
    assert sum(seen[f"weight on {name}"].value for name in groups) == pytest.approx(1, abs=1e-5)
    assert "Averaged over all tokens it gives" in seen.says[0]
    assert "no logits" in seen.left_out["what it writes"]
    read = interp.head(headless("bert"), "L1.H2", pairs("bert")[0])
    assert read["weight on other tokens"].value > 0
