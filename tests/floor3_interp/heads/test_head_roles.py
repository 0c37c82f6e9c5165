"""Every kind is its definition, from whole patterns in float64; planted heads rank first; zoo:induction's are found."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from models import attached
from torch import Tensor

import interp
from interp.heads import kinds as head_kinds
from interp.heads.kinds.repeated import random_tokens
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.examples.example import example
from interp.hooks.stand import call as stand_call
from interp.kernels.errors import InterpError
from interp.planted import build
from interp.results.roles import HeadRoles
from interp.zoo.families import tiny
from interp.zoo.plain import AttentionOnly, AttentionOnlyConfig

TEXTS = [
    "fox apple lake stone moon fox river , fox apple lake fox stone moon fox apple lake",
    "fox = apple , lake = stone , fox = , moon = river , fox = apple , stone",
]


@cache
def planted() -> interp.Model:
    return interp.attach(*build("planted-decoder"))


@cache
def roles_of_planted() -> HeadRoles:
    return interp.head_roles(planted(), TEXTS, n=4)


def patterns(m: interp.Model, x: Any, tower: str = "") -> Tensor:
    """[head of any layer, example, row, key]."""
    found = m.run(x, record=f"{tower}L*.pattern")
    layers = [found[site] for site in map(str, found.sites) if "pattern" in site]
    return torch.cat([one.double().transpose(0, 1) for one in layers])


def mean_over_rows(a: Tensor, keys: Callable[[int], list[int]], rows: range) -> float:
    """Mean over rows that have a key of the weight on their keys."""
    having = [i for i in rows if keys(i)]
    return sum(float(a[i, j]) for i in having for j in keys(i)) / len(having)


def mean_over_pairs(a: Tensor, keys: Callable[[int], list[int]], rows: range) -> float:
    pairs = [(i, j) for i in rows for j in keys(i)]
    return sum(float(a[i, j]) for i, j in pairs) / len(pairs)


def copies(ids: list[int], i: int, *, step: int, causal: bool) -> list[int]:
    """Columns `step` away from other copies of token i, among those row i sees."""
    other = [j for j in range(len(ids)) if ids[j] == ids[i] and (j < i if causal else j != i)]
    moved = [j + step for j in other]
    return [j for j in moved if 0 <= j < len(ids) and (j <= i or not causal)]


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "plain"])
def test_kinds_about_words_are_those_of_the_definitions(name: str) -> None:
    m = attached(name)
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(20, 26, (2, 14), generator=random)
    x = m.inputs({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    roles = interp.head_roles(m, x, kinds=["previous token", "self", "duplicate token", "induction", "local"])
    causal = not m.anatomy.tower(None, text="").bidirectional
    n = range(ids.shape[1])
    far = [i for i in n if i > 3 or (not causal and i + 3 < len(n) - 1)]
    for h, per_example in enumerate(patterns(m, x)):
        for b, a in enumerate(per_example):
            said = ids[b].tolist()
            keys: dict[str, Callable[[int], list[int]]] = {
                "previous token": lambda i: [i - 1] if i else [],
                "self": lambda i: [i],
                "duplicate token": lambda i: copies(said, i, step=0, causal=causal),  # noqa: B023
                "induction": lambda i: copies(said, i, step=1, causal=causal),  # noqa: B023
                "local": lambda i: [j for j in n if abs(i - j) <= 3] if i in far else [],
            }
            for kind, which in keys.items():
                want = mean_over_rows(a, which, n)
                assert float(roles.values[kind][h, b]) == pytest.approx(want, abs=1e-5), (kind, h, b)


def test_prefix_matching_is_the_average_of_entries_in_both_readings() -> None:
    m = attached("gpt2")
    roles = interp.head_roles(m, kinds=["prefix matching", "prefix matching (preceding)"], n=2, length=5, seed=3)
    several, once = random_tokens(m, 2, 5, 4, 3)
    ids = several.ids
    assert ids is not None
    assert once.ids is not None
    assert torch.equal(ids, once.ids.repeat(1, 4))
    assert all(len(set(row)) == 5 for row in once.ids.tolist())
    for h, per_example in enumerate(patterns(m, several)):
        for b, a in enumerate(per_example):
            said = ids[b].tolist()
            for kind, step in (("prefix matching", 1), ("prefix matching (preceding)", -1)):
                want = mean_over_pairs(a, lambda i: copies(said, i, step=step, causal=True), range(len(said)))  # noqa: B023
                assert float(roles.values[f"{kind} @ repeated"][h, b]) == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_positional_delimiter_and_broadcast_are_those_of_the_definitions(name: str) -> None:
    m = attached(name)
    ids = torch.randint(20, 60, (2, 15), generator=torch.Generator().manual_seed(2))
    x = m.inputs({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    roles = interp.head_roles(m, x, kinds=["positional", "broadcast"])
    causal = not m.anatomy.tower(None, text="").bidirectional
    for h, each in enumerate(patterns(m, x)):
        steps = [[int(row.argmax()) - i for i, row in enumerate(a)] for a in each]
        every = [s for some in steps for s in some]
        step = max(sorted(set(every)), key=every.count)
        assert roles.notes["positional"][h] == f"{step:+d}"
        shares = [some.count(step) / len(some) for some in steps]
        assert roles.values["positional"][h].tolist() == pytest.approx(shares)
        for b, a in enumerate(each):
            got = {k: [float(a[i, k]) for i in range(15) if i != k and (i > k or not causal)] for k in range(1, 15)}
            want = max(sum(v) / len(v) for v in got.values() if len(v) >= 8)
            assert float(roles.values["broadcast"][h, b]) == pytest.approx(want, abs=1e-5)


def test_delimiters_are_punctuation_and_not_words() -> None:
    m = planted()
    x = m.prepare(TEXTS)
    roles = interp.head_roles(m, x, kinds=["delimiter"])
    assert x.tokens is not None
    for h, each in enumerate(patterns(m, x)):
        for b, a in enumerate(each):
            real = [i for i in range(x.length) if x.valid[b, i]]
            marks = [j for j in real if x.tokens[b][j] in ("=", ",")]
            rows = [i for i in real if any(j <= i for j in marks)]
            want = sum(float(a[i, j]) for i in rows for j in marks if j <= i) / len(rows)
            assert float(roles.values["delimiter"][h, b]) == pytest.approx(want, abs=1e-5)


def test_in_a_picture_places_are_those_of_the_grid() -> None:
    m = attached("vit")  # patches of 3 x 4 behind a class token
    x = m.inputs(dict(example(m.module, batch=2)))
    roles = interp.head_roles(m, x)
    assert set(roles.kinds) == {"self", "positional", "local", "broadcast"}
    assert "patches" in roles.left_out["induction"]
    cells = [tuple(c) for c in zip(x.roles.row[0].tolist(), x.roles.col[0].tolist(), strict=True)]
    patches = [i for i, (row, _) in enumerate(cells) if row >= 0]
    assert patches == list(range(1, len(cells)))

    def apart(i: int, j: int) -> int:
        return max(abs(cells[i][0] - cells[j][0]), abs(cells[i][1] - cells[j][1]))

    for h, each in enumerate(patterns(m, x)):
        every = []
        for b, a in enumerate(each):
            near = [sum(float(a[i, j]) for j in patches if apart(i, j) <= 1) for i in patches]
            assert float(roles.values["local"][h, b]) == pytest.approx(sum(near) / len(near), abs=1e-5)
            cls = [float(a[i, 0]) for i in patches]
            assert float(roles.values["broadcast"][h, b]) == pytest.approx(sum(cls) / len(cls), abs=1e-5)
            best = [max(patches, key=lambda j: float(a[i, j])) for i in patches]
            every += [
                (cells[j][0] - cells[i][0], cells[j][1] - cells[i][1]) for i, j in zip(patches, best, strict=True)
            ]
        share = max(every.count(step) for step in every) / len(every)
        assert float(roles.of("positional")[h]) == pytest.approx(share)


def auroc(roles: Any, kind: str, right: str) -> float:
    """The share of other heads that the right one is above."""
    values = dict(zip(roles.sites, roles.of(kind).tolist(), strict=True))
    others = [value for site, value in values.items() if site != right]
    return sum(values[right] > value for value in others) / len(others)


def test_planted_heads_rank_first_in_their_kind() -> None:
    roles = roles_of_planted()
    for kind, site in (("previous token", "L0.H1"), ("duplicate token", "L0.H2"), ("induction", "L1.H4")):
        assert auroc(roles, f"{kind} @ repeated", site) == 1.0
        assert auroc(roles, kind, site) == 1.0
        assert roles.top(1, kind=f"{kind} @ repeated")["site"].item() == site
    assert auroc(roles, "prefix matching", "L1.H4") == 1.0
    assert float(roles.of("positional")[roles.sites.index("L0.H1")]) > 0.9
    assert roles.notes["positional"][roles.sites.index("L0.H1")] == "-1"
    assert roles.notes["positional"][roles.sites.index("L0.H4")] == "-2"
    assert "induction @ repeated L1.H4" in repr(roles)


def test_without_a_kind_the_top_is_what_each_head_stands_out_in() -> None:
    roles = roles_of_planted()
    best = roles.top(len(roles.sites)).set_index("site")
    assert best.index.is_unique
    assert best.loc["L0.H2", "method"].startswith("duplicate token")
    table = roles.table().loc["L0.H2"]
    spread = roles.table().std(ddof=0)
    above = (table - roles.table().mean()) / spread
    assert best.loc["L0.H2", "above"] == pytest.approx(above[table > 0].max())


def test_the_induction_heads_of_a_trained_model_are_found_and_are_what_repetition_rests_on() -> None:
    m = interp.load("zoo:induction")
    roles = interp.head_roles(m, n=4)
    score = dict(zip(roles.sites, roles.of("induction @ repeated").tolist(), strict=True))
    found = [site for site, value in score.items() if value > 0.5]
    assert found == [site for site in roles.sites if site.startswith("L1.")]
    assert max(value for site, value in score.items() if site not in found) < 0.1
    task = interp.tasks.induction(m, n=32)

    def without(*sites: str) -> float:
        edits = [interp.Zero(f"{site}.z") for site in sites]
        return float(task.metric(m.run(task.clean, edits=edits)["logits"], task.clean).mean())

    lost = {site: without() - without(site) for site in found}
    assert without() - without(*found) > 2 * max(lost.values())
    assert without(*found) < 0.5 < without()


@cache
def copier() -> interp.Model:
    """One layer; head 1 writes the logit of what it looks at, head 0 takes it away, head 2 writes nothing."""
    model = AttentionOnly(AttentionOnlyConfig(vocab=12, d_model=32, heads=3, d_head=16, layers=1, context=32)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.embed.weight[:, :12] = torch.eye(12)
        model.unembed.weight[:, 12:24] = torch.eye(12)
        attn: Any = model.blocks[0].attn
        for head, sign in ((0, -1.0), (1, 1.0)):
            attn.v.weight[16 * head : 16 * head + 12, :12] = torch.eye(12)
            attn.o.weight[12:24, 16 * head : 16 * head + 12] = sign * torch.eye(12)
    return interp.attach(model)


def test_copying_is_found_by_what_a_head_writes() -> None:
    roles = interp.head_roles(copier(), kinds=["copying"], length=8, n=4)
    assert auroc(roles, "copying", "L0.H1") == 1.0
    values = dict(zip(roles.sites, roles.of("copying").tolist(), strict=True))
    assert values["L0.H2"] == -1.0
    assert values["L0.H1"] > -0.5 > values["L0.H0"]


def test_copying_is_that_of_the_definition() -> None:
    m = interp.attach(tiny("gpt2"))
    m.module.requires_grad_(False)
    got = interp.head_roles(m, kinds=["copying"], n=2, length=6, seed=1).values["copying"]
    _, once = random_tokens(m, 2, 6, 4, 1)
    tape = m.run(once, record=["L*.z", "L*.pattern", "L1.resid_post"])
    left, norm = tape["L1.resid_post"].double(), m.module.transformer.ln_f
    std = left.var(-1, unbiased=False, keepdim=True).add(norm.eps).sqrt()
    assert once.ids is not None
    for n, site in enumerate(m.sites("L*.z")):
        layer = int(site[1])
        o = m.module.transformer.h[layer].attn.c_proj.weight.double().unflatten(0, (4, 8))
        for h in range(4):
            write = tape[site][:, :, h].double() @ o[h]
            logits = (
                (write - write.mean(-1, keepdim=True)) / std * norm.weight.double()
            ) @ m.module.lm_head.weight.double().T
            raised = (logits - logits.mean(-1, keepdim=True)).relu()
            for b, ids in enumerate(once.ids.tolist()):
                scores = []
                for i in range(1, len(ids)):  # the first token is where heads rest, and is not looked for
                    looked = ids[1 + int(tape[f"L{layer}.pattern"][b, h, i, 1:].argmax())]
                    whole = sum(float(raised[b, i, t]) for t in ids)
                    own = float(raised[b, i, looked])
                    scores.append(4 * own / (own + whole) - 1 if own else -1.0)
                assert float(got[4 * n + h, b]) == pytest.approx(sum(scores) / len(scores), abs=1e-4)


def test_padding_changes_nothing_and_nothing_stays_on_the_model() -> None:
    m = planted()
    both, alone = roles_of_planted(), interp.head_roles(m, TEXTS[1], n=4)
    for kind in ("previous token", "duplicate token", "induction", "delimiter", "local", "broadcast", "self"):
        torch.testing.assert_close(both.values[kind][:, 1], alone.values[kind][:, 0], atol=1e-5, rtol=1e-4)
    assert m.handles() == []
    assert torch.equal(interp.head_roles(m, TEXTS, kinds=["local"]).of("local"), both.of("local"))


def test_long_texts_are_read_in_pieces_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    m = attached("llama")
    x = dict(example(m.module, batch=2, length=40, seed=4))
    kinds = [
        one.name
        for one in head_kinds.KINDS
        if one.name not in ("delimiter", "prefix matching", "prefix matching (preceding)")
    ]
    whole = interp.head_roles(m, x, kinds=kinds, n=1)
    monkeypatch.setattr(stand_call, "NUMBERS", 2000)
    monkeypatch.setattr(head_kinds.kind, "CHUNK", 7)
    parts = interp.head_roles(m, x, kinds=kinds, n=1)
    for name in whole.kinds:
        torch.testing.assert_close(parts.values[name], whole.values[name], atol=1e-6, rtol=1e-5)


def test_a_result_can_be_saved_read_and_drawn(tmp_path: Path) -> None:
    roles = roles_of_planted()
    again = interp.open(roles.save(tmp_path / "roles"))
    assert again.to_frame().equals(roles.to_frame())
    assert again.describe("L0.H1") == roles.describe("L0.H1")
    frame = roles.to_frame()
    assert {"site", "tower", "layer", "head", "method", "estimate", "low", "high", "n"} <= set(frame.columns)
    assert (frame["low"] <= frame["estimate"] + 1e-9).all()
    assert (frame["estimate"] <= frame["high"] + 1e-9).all()
    assert len(roles.plot().data[0].y) == 12


def test_towers_of_an_lvlm_are_read_one_at_a_time() -> None:
    m = interp.attach(*build("planted-lvlm"))
    x = dict(example(m.module, batch=1, length=12))
    words = interp.head_roles(m, x, heads="text.L*", kinds=["previous token", "local"])
    assert words.sites[0] == "text.L0.H0"
    eyes = interp.head_roles(m, x, heads="vision.L*")
    assert set(eyes.kinds) == {"self", "positional", "local", "broadcast"}


def test_what_has_no_meaning_is_refused() -> None:
    m = planted()
    refused: list[tuple[interp.Model, Any, dict[str, Any], type[Exception], str]] = [
        (m, torch.tensor([[1]]), {}, InputsError, "at least two tokens"),
        (m, TEXTS, {"kinds": ["inductoin"]}, InputsError, "Did you mean 'induction'"),
        (m, TEXTS, {"kinds": []}, InputsError, "at least one"),
        (m, TEXTS, {"heads": "L9"}, SiteError, "no layer"),
        (m, None, {"kinds": ["delimiter"]}, InputsError, "none was given"),
        (m, "fox apple", {"kinds": ["duplicate token", "broadcast"]}, InputsError, "more than 9 tokens"),
        (m, None, {"length": 1}, InputsError, "length >= 2"),
        (attached("vit"), None, {}, InputsError, "give data="),
        (attached("vit"), dict(example(tiny("vit"), batch=1)), {"kinds": ["induction"]}, InputsError, "patches"),
        (attached("t5"), dict(example(tiny("t5"), batch=1)), {"heads": "cross.L*"}, SiteError, "cross-attention"),
        (attached("gpt2"), None, {"repeats": 60}, InputsError, "fewer repeats"),
    ]  # fmt: skip
    for model, data, how, kind, says in refused:
        with pytest.raises(kind, match=says):
            interp.head_roles(model, data, **how)
    with pytest.raises(InterpError, match="patches"):
        interp.head_roles(attached("vit"), dict(example(tiny("vit"), batch=1))).of("induction")


def test_where_heads_have_no_writes_copying_is_left_out_unless_it_is_asked_for() -> None:
    m = attached("bert")  # normalises after adding
    found = interp.head_roles(m, n=2, length=5)
    assert "normalises after adding" in found.left_out["copying"]
    assert "induction @ repeated" in found.kinds
    with pytest.raises(InputsError, match="normalises after adding"):
        interp.head_roles(m, n=2, length=5, kinds=["copying"])


def test_one_layer_and_one_head_will_do() -> None:
    one, every = interp.head_roles(planted(), TEXTS, heads="L0.H1", n=4), roles_of_planted()
    assert one.sites == ("L0.H1",)
    for kind in one.kinds:
        torch.testing.assert_close(
            one.values[kind][0], every.values[kind][every.sites.index("L0.H1")], atol=1e-6, rtol=1e-5
        )


class Letters:
    """A tokenizer of the four letters of a genome: no word of two letters among its tokens."""

    bos_token_id = None
    all_special_ids = (0,)
    words = ("<pad>", "A", "C", "G", "T")

    def __len__(self) -> int:
        return len(self.words)

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        return self.words[ids] if isinstance(ids, int) else [self.words[i] for i in ids]

    def __call__(self, text: str, **_: Any) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(input_ids=[self.words.index(c.upper()) for c in text])


def test_data_without_words_is_measured_and_random_words_are_left_out() -> None:
    m = interp.attach(tiny("bert"))
    ids = torch.tensor([[1, 2, 3, 4, 1, 2, 4, 3, 1, 2, 3, 4]])
    x = m.inputs({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    genes = interp.attach(tiny("bert"), Letters())
    roles = interp.head_roles(genes, x)
    assert {"previous token", "duplicate token", "induction"} <= set(roles.kinds)
    for name in ("copying", "induction @ repeated"):
        assert "random tokens cannot be made" in roles.left_out[name]
    with pytest.raises(InterpError, match="0 words"):
        interp.head_roles(genes)


def test_a_model_without_logits_has_roles_and_no_copying() -> None:
    from encoders import headless, pairs

    roles = interp.head_roles(headless("bert"), pairs("bert")[0], n=2, length=6, repeats=2)
    assert "no logits" in roles.left_out["copying"]
    assert {"self", "previous token", "induction @ repeated"} <= set(roles.kinds)
    with pytest.raises(InputsError, match="copying"):
        interp.head_roles(headless("bert"), pairs("bert")[0], kinds=["copying"], n=2, length=6, repeats=2)
