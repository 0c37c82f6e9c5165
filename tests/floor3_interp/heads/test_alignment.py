"""Cross-attention heads that follow the other sequence: on weights planted by hand, and against dense patterns."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas
import pytest
import torch
import transformers as hf
from spoken import tone, whisper
from tokens import bpe
from torch import Tensor, nn

import interp
from interp.heads.kinds.alignment import rank_correlation
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.examples.example import example
from interp.zoo.families import tiny

PLACES, D = 12, 32
LOUD = 30.0


def _still(layer: nn.Module) -> None:
    """A layer that adds nothing to its input."""
    for name, parameter in layer.named_parameters():
        if "layer_norm" not in name:
            parameter.zero_()


@cache
def planted() -> interp.Model:
    """A BART whose blocks add nothing and whose positions are one-hot, so that a cross-attention head looks where its
    query and key matrices say: row i at key i (H0), at key i + 1 (H1), at key 5 - i (H2), at key 0 (H3)."""
    looks: list[Callable[[int], int]] = [lambda i: i, lambda i: i + 1, lambda i: 5 - i, lambda i: 0]
    config = hf.BartConfig(
        d_model=4 * D, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=8, decoder_ffn_dim=8, vocab_size=420, max_position_embeddings=PLACES, bos_token_id=0,
        eos_token_id=1, pad_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    module = hf.BartForConditionalGeneration(config).eval()
    with torch.no_grad():
        for stack in (module.model.encoder, module.model.decoder):
            stack.embed_positions.weight.zero_()
            for place in range(PLACES):
                stack.embed_positions.weight[place + 2, place] = 1.0
            stack.embed_tokens.weight.mul_(1e-4)
            _still(stack.layers[0])
        across = module.model.decoder.layers[0].encoder_attn
        for head, look in enumerate(looks):
            for i in range(PLACES):
                across.k_proj.weight[head * D + i, i] = 1.0
                if 0 <= look(i) < PLACES:
                    across.q_proj.weight[head * D + look(i), i] = LOUD
    return interp.attach(module, bpe())


def translated() -> tuple[interp.Model, Any]:
    m = planted()
    return m, m.prepare(
        ["a square and John on the left", "What is in the image?"], continuation=[" yes or no", " a drink to"]
    )


def dense(m: interp.Model, x: Any, wanted: Tensor, ahead: int) -> Tensor:
    """[head, example]: the mean over the rows `ahead` columns before a token with a span of the weight on it, by
    loops."""
    found = m.run(x, record="cross.L*.pattern")["cross.L*.pattern"]
    p = found if torch.is_tensor(found) else torch.cat(list(found.values()), 1)
    out = torch.zeros(p.shape[1], len(p), dtype=torch.float64)
    for b in range(len(p)):
        for h in range(p.shape[1]):
            worth = [
                float(p[b, h, column - ahead][wanted[b, column]].double().sum())
                for column in range(wanted.shape[1])
                if wanted[b, column].any() and column - ahead >= 0
            ]
            out[h, b] = sum(worth) / len(worth)
    return out


def test_planted_heads_are_found_each_by_the_row_it_looks_from() -> None:
    m, x = translated()
    spans = [[(column, column) for column in range(1, 3)] for _ in range(2)]
    found = interp.heads.alignment(m, x, spans=spans)
    assert found.kinds == ("aligned (predicting row)", "aligned (own row)", "monotone (predicting row)",
                           "monotone (own row)")  # fmt: skip
    own, predicting = found.of("aligned (own row)"), found.of("aligned (predicting row)")
    assert own.argmax() == 0
    assert own[0] > 0.9
    assert own[1:].max() < 0.1
    assert predicting.argmax() == 1
    assert predicting[1] > 0.9
    assert predicting[[0, 2, 3]].max() < 0.1
    order = found.of("monotone (own row)")
    assert order.tolist() == pytest.approx([1.0, 1.0, -1.0, 0.0], abs=1e-9)
    assert found.notes["aligned (own row)"][0].startswith("largest weight there in 100% of rows")
    assert found.sites == tuple(f"cross.L0.H{n}" for n in range(4))
    wanted = torch.zeros(2, x.length, x.tower("encoder").length, dtype=torch.bool)
    for column in range(1, 3):
        wanted[:, column, column] = True
    for name, ahead in (("aligned (predicting row)", 1), ("aligned (own row)", 0)):
        torch.testing.assert_close(found.values[name], dense(m, x, wanted, ahead), atol=1e-5, rtol=1e-5)


def test_moving_on_is_not_being_aligned() -> None:
    """A head that counts tokens is monotone whatever the words are about; without spans that is warned about."""
    m, x = translated()
    with pytest.warns(UserWarning, match="monotone head need not be aligned"):
        found = interp.heads.alignment(m, x)
    assert found.kinds == ("monotone (predicting row)", "monotone (own row)")
    assert found.left_out["aligned (own row)"] == "no spans= were given"
    assert float(found.of("monotone (own row)")[0]) == pytest.approx(1.0)
    wrong = [[(column, 4 - column) for column in range(1, 4)] for _ in range(2)]
    away = interp.heads.alignment(m, x, spans=wrong)
    assert float(away.of("monotone (own row)")[0]) == pytest.approx(1.0)
    assert float(away.of("aligned (own row)")[0]) < 0.5


def test_spans_are_words_columns_or_mentions() -> None:
    m, x = translated()
    source = x.tower("encoder")
    first, second = source.find("John", row=0).rows[0], source.find("image", row=1).rows[1]
    said = interp.heads.alignment(m, x, spans=[{" or": "John"}, [(" drink", "image")]])
    column = [x.find(" or", row=0).rows[0], x.find(" drink", row=1).rows[1]]
    plain = interp.heads.alignment(m, x, spans=[[(column[0], first)], [(column[1], second)]])
    assert torch.equal(said.values["aligned (own row)"], plain.values["aligned (own row)"])


@cache
def listening() -> tuple[interp.Model, Any]:
    m = interp.attach(*whisper())
    x = m.prepare(audio=[tone(0.3), tone(0.8, seed=1)], language="en", continuation=[" yes or no", " in the store"])
    return m, x


def test_whisper_by_seconds_against_loops() -> None:
    m, x = listening()
    spans = [[(" yes", (0.0, 0.1)), (" no", (0.1, 0.3))], [(" the", (0.2, 0.41))]]
    found = interp.heads.alignment(m, x, spans=spans)
    wanted = torch.zeros(2, x.length, 50, dtype=torch.bool)
    for row, pairs in enumerate(spans):
        for word, (start, end) in pairs:
            a, b = x.find(word, row=row).rows[row]
            for n in range(50):
                if n * 0.02 < end - 1e-9 and (n + 1) * 0.02 > start + 1e-9:
                    wanted[row, a:b, n] = True
    for name, ahead in (("aligned (predicting row)", 1), ("aligned (own row)", 0)):
        torch.testing.assert_close(found.values[name], dense(m, x, wanted, ahead), atol=1e-5, rtol=1e-5)
    assert " s to " in found.notes["monotone (own row)"][0]


def test_filling_is_not_looked_at_in_order() -> None:
    """The largest weight on sound counts, even where the model looks at filling more."""
    m, x = listening()
    found = interp.heads.alignment(m, x, spans=[[(" yes", (0.0, 0.1))], [(" the", (0.2, 0.4))]])
    p = m.run(x, record="cross.L*.pattern")
    text = x.roles.where("text")
    for layer in range(2):
        for head in range(2):
            for row, frames in ((0, 15), (1, 40)):
                rows = text[row].nonzero().flatten()
                best = p[f"cross.L{layer}.pattern"][row, head, rows, :frames].argmax(-1).double()
                expected = _spearman(rows.double().numpy(), best.numpy())
                got = float(found.values["monotone (own row)"][2 * layer + head, row])
                assert got == pytest.approx(expected, abs=1e-9)
                said = found.notes["monotone (own row)"][2 * layer + head]
    assert said.startswith("looks at ")


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's of ranks, ties at their mean, by loops."""
    if len(set(b.tolist())) == 1:
        return 0.0

    def ranks(x: np.ndarray) -> list[float]:
        return [sum(y < v for y in x) + (sum(y == v for y in x) - 1) / 2 for v in x]

    one, two = ranks(a), ranks(b)
    mean = (len(a) - 1) / 2
    top = math.fsum((u - mean) * (v - mean) for u, v in zip(one, two, strict=True))
    return top / math.sqrt(math.fsum((u - mean) ** 2 for u in one) * math.fsum((v - mean) ** 2 for v in two))


def test_ranks_are_those_of_a_peer() -> None:
    x, y = torch.rand(9, dtype=torch.double), torch.randint(0, 4, (5, 9)).double()
    for one, got in zip(y, rank_correlation(x, y), strict=True):
        frame = pandas.DataFrame({"x": x.numpy(), "y": one.numpy()})
        assert float(got) == pytest.approx(frame.corr(method="spearman")["x"]["y"], abs=1e-12)
        assert float(got) == pytest.approx(_spearman(x.numpy(), one.numpy()), abs=1e-12)
    assert float(rank_correlation(x, torch.ones(9).double())) == 0.0


def marian() -> nn.Module:
    return hf.MarianMTModel(
        hf.MarianConfig(
            d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=420, pad_token_id=2, eos_token_id=1,
            decoder_start_token_id=2, max_position_embeddings=32,
        )
    ).eval()  # fmt: skip


@pytest.mark.parametrize("name", ["t5", "marian"])
def test_other_translators(name: str) -> None:
    torch.manual_seed(0)
    m = interp.attach(marian() if name == "marian" else tiny(name))
    x = m.inputs(dict(example(m.module, batch=2, length=9, padding="right", seed=1)))
    found = interp.heads.alignment(m, x, spans=[[(1, (0, 2)), (2, 3)], [((1, 3), 1)]])
    wanted = torch.zeros(2, x.length, x.tower("encoder").length, dtype=torch.bool)
    wanted[0, 1, :2] = wanted[0, 2, 3] = wanted[1, 1:3, 1] = True
    for kind, ahead in (("aligned (predicting row)", 1), ("aligned (own row)", 0)):
        torch.testing.assert_close(found.values[kind], dense(m, x, wanted, ahead), atol=1e-5, rtol=1e-5)


def full_tiles(m: interp.Model) -> dict[str, Tensor]:
    """A picture of as many tiles as there can be."""
    x = dict(example(m.module, batch=1, seed=1))
    x["aspect_ratio_mask"] = torch.ones_like(x["aspect_ratio_mask"])
    x["cross_attention_mask"] = torch.ones_like(x["cross_attention_mask"])
    return x


def test_patches_that_words_are_about() -> None:
    m = interp.attach(tiny("mllama"))
    x = m.inputs(full_tiles(m))
    crossed = [one.index for one in m.anatomy.towers["text"].layers if one.kind == "cross"]
    p = m.run(x, record=f"text.L{crossed[0]}.pattern")[f"text.L{crossed[0]}.pattern"]
    tiles = x.kwargs["aspect_ratio_mask"].shape[-1]
    per = p.shape[3] // tiles  # a tile's class token and patches, behind which its tower has filler
    assert x.tower("vision").length // tiles > per
    expected = p[0, :, 3, per + 1 : per + 3].double().sum(-1)
    start = x.tower("vision").length // tiles + 1
    found = interp.heads.alignment(m, x, spans=[[(3, (start, start + 2))]])
    assert found.sites[0] == f"text.L{crossed[0]}.H0"
    torch.testing.assert_close(found.values["aligned (own row)"][: len(expected), 0], expected, atol=1e-6, rtol=1e-5)


def test_what_has_no_meaning_is_refused() -> None:
    m, x = listening()
    for spans, says in (
        ([[]], "pairs .token, keys. of each example, here 2"),
        ([[(" yes", (0.4, 0.5))], []], "is padding throughout"),
        ([[(" yes", (0.0, 0.1))], [("xyzzy", 3)]], "no 'xyzzy' in row 1"),
        ([[(" yes", (0, 99))], []], "out of range in example 0"),
        ([[(" yes", [1])], []], "is no place"),
        ([[(" yes", "hello")], []], "no role 'hello'"),
    ):
        with pytest.raises(InputsError, match=says):
            interp.heads.alignment(m, x, spans=spans)
    with pytest.raises(SiteError, match="GPT2LMHeadModel has no cross-attention"):
        interp.heads.alignment(interp.attach(tiny("gpt2")), {"input_ids": torch.tensor([[1, 2, 3]])})
    with pytest.raises(SiteError, match="are self-attention"):
        interp.heads.alignment(m, x, heads="decoder.L*", spans=[[(1, 1)], [(1, 1)]])
    with pytest.raises(SiteError, match=r"see interp\.heads\.alignment"):
        interp.head_roles(m, x, heads="cross.L*")
