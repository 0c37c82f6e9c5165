"""A corpus in fixed memory: the same numbers as all its documents at once, and the same bytes whatever the order."""

import gzip
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
import torch
from pyarrow import parquet
from torch import Tensor

import interp
from interp.hooks.errors import InputsError
from interp.kernels.errors import InterpError
from interp.scale.corpora import sketch
from interp.scale.corpora.corpus import corpus
from interp.scale.corpora.documents import Bad, CorpusError, Document, documents
from interp.scale.corpora.measures import LossWithout
from interp.scale.corpora.sums import carried, digits, summed, value
from interp.scale.corpora.tally import Tally

WORDS = "When Mary and John went to the store , John gave a drink to Mary .".split()


@pytest.fixture(scope="module")
def m() -> interp.Model:
    return interp.load("zoo:ioi")


def sentences(n: int, seed: int = 0) -> list[str]:
    random = torch.Generator().manual_seed(seed)
    picks = [
        torch.randint(len(WORDS), (int(torch.randint(4, 14, (), generator=random)),), generator=random)
        for _ in range(n)
    ]
    return [" ".join(WORDS[i] for i in pick.tolist()) for pick in picks]


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in texts), encoding="utf-8")
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_sums_are_exact_and_in_any_order_the_same() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(500, 3, dtype=torch.float64, generator=random) * 10.0 ** torch.randint(
        -6, 9, (500, 3), generator=random
    )
    total = summed(x)
    order = torch.randperm(500, generator=random)
    assert torch.equal(total, summed(x[order]))
    assert torch.equal(total, carried(summed(x[:123]) + summed(x[123:])))
    for n in range(3):
        exact = sum(Fraction(v) for v in x[:, n].tolist())
        assert abs(Fraction(float(value(total)[n])) - exact) <= Fraction(1, 2**50) * abs(exact) + 500 * Fraction(
            1, 2**62
        )
    with pytest.raises(OverflowError, match="beyond"):
        digits(torch.tensor([2.0**63], dtype=torch.float64))


def test_quantiles_are_within_a_percent_of_one_of_the_data() -> None:
    x = torch.cat([torch.randn(999, 1).double().exp(), -torch.randn(500, 1).double().exp(), torch.zeros(2, 1)])
    counts = sketch.counted(x, torch.ones_like(x, dtype=torch.bool))
    ordered = x[:, 0].sort().values
    for share in (0.0, 0.1, 0.333, 0.5, 0.9, 1.0):
        true = float(ordered[int(share * (len(x) - 1))])
        assert abs(float(sketch.quantile(counts, share)[0]) - true) <= 0.0100001 * abs(true)
    assert torch.isnan(sketch.quantile(torch.zeros_like(counts), 0.5)).all()


def test_a_tally_is_the_mean_its_error_and_the_first_of_equal_documents() -> None:
    random = torch.Generator().manual_seed(1)
    v, w = torch.rand(40, 2, generator=random).double(), torch.randint(0, 5, (40, 2), generator=random).double()
    v[7] = v[31] = 2.0
    w[7] = w[31] = 1.0
    at = torch.stack([torch.arange(40) // 8, torch.arange(40) % 8], 1)
    parts = [Tally.of("a", v[n : n + 8], w[n : n + 8], at[n : n + 8], top=3, quantiles=True) for n in range(0, 40, 8)]
    one, other = sum(parts[1:], parts[0]), sum(parts[-2::-1], parts[-1])
    assert all(torch.equal(one.held[name], other.held[name]) for name in one.held)
    mean, error = one.mean("a")
    y, total = v * w, w.sum(0)
    kept = (w > 0).sum(0).double()
    assert torch.allclose(mean, y.sum(0) / total, rtol=1e-14)
    assert torch.allclose(error, (kept / (kept - 1) * ((y - mean * w) ** 2).sum(0)).sqrt() / total, rtol=1e-9)
    assert one.part("a", "where")[:, 0].tolist() == [[0, 7], [0, 7]]
    assert one.part("a", "where")[0, 1].tolist() == [3, 7]


@pytest.mark.parametrize("size", [1, 7, 64, 1 << 20])
def test_every_line_is_in_one_block_whatever_the_size_of_blocks(tmp_path: Path, size: int) -> None:
    texts = [*sentences(20), "ö€𝔸 ends", "x"]
    read = documents(jsonl(tmp_path / "a.jsonl", texts), block_bytes=size)
    assert read.count is not None
    found = [one for n in range(read.count) for one in read.read(n)]
    assert [one.text for one in found if isinstance(one, Document)] == texts


def test_every_kind_of_file_gives_the_same_texts(tmp_path: Path) -> None:
    texts = sentences(30)
    jsonl(tmp_path / "a.jsonl", texts)
    (tmp_path / "b.txt").write_text("\n".join(texts), encoding="utf-8")
    with gzip.open(tmp_path / "c.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write((tmp_path / "a.jsonl").read_text())
    parquet.write_table(arrow.table({"id": list(range(30)), "text": texts}), tmp_path / "d.parquet", row_group_size=7)
    for file_name in ("a.jsonl", "b.txt", "c.jsonl.gz", "d.parquet"):
        read = documents(str(tmp_path / file_name), block_bytes=100)
        assert read.count is not None
        assert [getattr(one, "text", None) for n in range(read.count) for one in read.read(n)] == texts
    whole = documents(tmp_path)
    assert whole.count == 3 + 5
    assert documents(str(tmp_path / "*.jsonl")).count == 1


def test_what_cannot_be_read_is_named_by_file_and_line_and_fatal_or_passed_over(
    m: interp.Model, tmp_path: Path
) -> None:
    good = [json.dumps({"text": one}).encode() for one in sentences(6)]
    lines = [good[0], b"{broken", good[1], b'{"text": 3}', b'{"other": "x"}', b"\xff\xfe", b"[1]", b"", good[2]]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    jsonl(tmp_path / "c.jsonl", sentences(3))
    parquet.write_table(arrow.table({"words": ["a"]}), tmp_path / "d.parquet")
    for size in (9, 1 << 20):
        read = documents(path, block_bytes=size)
        assert read.count is not None
        bad = [one.where for n in range(read.count) for one in read.read(n) if isinstance(one, Bad)]
        assert bad == [f"{path}, line {n}" for n in (2, 4, 5, 6, 7)]
    with pytest.raises(CorpusError, match=r"a\.jsonl, line 2: not JSON .*on_error='skip'"):
        corpus(m, tmp_path)
    found = corpus(m, tmp_path, on_error="skip")
    assert [found.counts[name] for name in ("documents", "bad")] == [6, 7]
    assert any("b.parquet" in where for where, _ in found.bad)
    assert any("no column 'text'" in why for _, why in found.bad)


def test_the_numbers_are_those_of_all_documents_at_once(m: interp.Model, tmp_path: Path) -> None:
    texts = sentences(12)
    found = corpus(m, jsonl(tmp_path / "a.jsonl", texts), stats=["entropy", "previous", "induction", "retrieval"],
                   reduce=["mean", "least", "most", "quantile:0.5", "top:2"], batch=3, block_bytes=200)  # fmt: skip
    singles = [m.prepare(one, chat=False) for one in texts]
    stats = [m.attention(x, stats=("entropy", "previous", "argmax")) for x in singles]
    for name in ("entropy", "previous"):
        rows = torch.cat([torch.cat([one.values[site][name][0] for site in one.values]) for one in stats], 1)
        assert torch.allclose(found[name], rows.double().mean(1), atol=1e-6)
    site = next(iter(stats[0].values))
    hits, rows_counted = torch.zeros(4), 0
    for x, one in zip(singles, stats, strict=True):
        assert x.ids is not None
        ids, looked = x.ids[0].tolist(), one.values[site]["argmax"][0]
        for row in range(len(ids) - 1):
            if ids[row + 1] in ids[: row + 1]:
                rows_counted += 1
                hits += torch.tensor([ids[int(looked[head, row])] == ids[row + 1] for head in range(4)])
    assert torch.allclose(found["retrieval"][:4], (hits / rows_counted).double())
    best = found.examples("entropy", "L0.H0")
    means = [float(one.values[site]["entropy"][0, 0].double().mean()) for one in stats]
    assert [text for _, text, _ in best] == [texts[n] for n in sorted(range(12), key=lambda n: -means[n])[:2]]
    frame = found.to_frame()
    assert set(frame["method"]) == {"entropy", "previous", "induction", "retrieval"}
    assert "quantile 0.5" in frame
    assert (frame["low"] <= frame["estimate"]).all()
    assert "12 documents" in repr(found)


def test_killed_and_gone_on_and_in_another_order_the_bytes_are_the_same(m: interp.Model, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", sentences(12))
    asked: dict[str, Any] = {"stats": ["entropy", "previous token"], "reduce": ["mean", "top:2", "quantile:0.9"],
                             "block_bytes": 120, "batch": 4}  # fmt: skip
    corpus(m, path, **asked, out=tmp_path / "whole")
    stopped = Stopping(["entropy", "previous token"], 4)
    with pytest.raises(KeyboardInterrupt):
        corpus(m, path, **{**asked, "stats": stopped.measures}, out=tmp_path / "again")
    corpus(m, path, **asked, out=tmp_path / "again")
    assert files(tmp_path / "whole") == files(tmp_path / "again")
    back = interp.open(tmp_path / "whole")
    assert repr(back) == repr(corpus(m, path, **asked))
    with pytest.raises(InterpError, match="holds another pass over a corpus: its batch is 4"):
        corpus(m, path, **{**asked, "batch": 5}, out=tmp_path / "whole")


def test_shards_add_up_to_the_bytes_of_one_pass_and_say_what_is_wrong(m: interp.Model, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", sentences(8))
    asked: dict[str, Any] = {"stats": ["entropy"], "reduce": ["top:2", "quantile:0.5"], "block_bytes": 150}
    corpus(m, path, **asked, out=tmp_path / "whole")
    for index in range(3):
        done = corpus(m, path, **asked, out=tmp_path / f"part{index}", shard=(index, 3))
        assert f"Shard {index}/3 of interp.scale.corpus" in repr(done)
    parts = [tmp_path / f"part{n}" for n in range(3)]
    found = interp.scale.merge(parts, tmp_path / "merged")
    assert files(tmp_path / "merged") == files(tmp_path / "whole")
    assert found.counts["documents"] == 8
    assert interp.scale.status(tmp_path / "whole").finished
    assert "shard 1/3 of a corpus, finished" in repr(interp.scale.status(parts[1]))
    with pytest.raises(InterpError, match="is not empty"):
        interp.scale.merge(parts, tmp_path / "merged")
    with pytest.raises(InterpError, match="missing: 2/3"):
        interp.scale.merge(parts[:2], tmp_path / "two")
    corpus(m, path, **{**asked, "stats": ["first"]}, out=tmp_path / "other", shard=(2, 3))
    with pytest.raises(InterpError, match="do not belong together: their stats"):
        interp.scale.merge([*parts[:2], tmp_path / "other"], tmp_path / "mixed")
    state = next((tmp_path / "part0").glob("state-*.safetensors"))
    state.write_bytes(state.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InterpError, match="damaged"):
        interp.scale.merge(parts, tmp_path / "flipped")


class Stopping:
    """The same measures, stopped by a key in the middle."""

    def __init__(self, names: list[str], after: int) -> None:
        from interp.scale.corpora.measures import measures

        self.left = after
        self.measures = [Counted(one, self) for one in measures(names, "L*")]


class Counted:
    def __init__(self, inner: Any, owner: Stopping) -> None:
        self.inner, self.owner, self.names, self.labels = inner, owner, inner.names, inner.labels

    def of(self, model: interp.Model, x: Any) -> dict[str, tuple[Tensor, Tensor]]:
        self.owner.left -= 1
        if self.owner.left < 0:
            raise KeyboardInterrupt
        found: dict[str, tuple[Tensor, Tensor]] = self.inner.of(model, x)
        return found


def test_the_loss_without_heads_is_that_of_influence(m: interp.Model) -> None:
    texts = sentences(5)
    found = corpus(m, texts, stats=[LossWithout(("L1.H0",))])
    one = interp.long.influence(m, texts, heads=["L1.H0"], random=0)
    assert float(found["influence"][0]) == pytest.approx(float(one.score.mean()), rel=1e-5)
    assert found.labels["influence"] == ("L1.H0",)


def test_texts_that_come_once_are_read_once(m: interp.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.scale.corpora.documents.TEXTS", 4)
    texts = sentences(10)
    listed, coming = corpus(m, texts), corpus(m, iter(texts))
    assert torch.equal(listed["entropy"], coming["entropy"])
    assert coming.counts["documents"] == 10
    with pytest.raises(InterpError, match="could be measured"):
        corpus(m, iter([]))


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"stats": "received"}, "is of keys"), ({"stats": "argmax"}, "no number"), ({"stats": "entropie"}, "entropy"),
     ({"reduce": "quantile:2"}, "no reduction"), ({"reduce": "top:0"}, "no reduction"), ({"stats": []}, "no measure"),
     ({"max_tokens": 1}, "from 2"), ({"batch": 0}, "at least 1"), ({"stats": "influence"}, "LossWithout")],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_in_words(m: interp.Model, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InputsError, match=said):
        corpus(m, ["a b c"], **asked)


def test_a_file_that_is_not_there_or_of_no_known_kind_is_named(tmp_path: Path) -> None:
    for name, said in (("gone.jsonl", "cannot be read"), ("a.docx", "read by its ending"), ("*.jsonl", "has no")):
        (tmp_path / "a.docx").write_bytes(b"x")
        with pytest.raises(CorpusError, match=said):
            documents(str(tmp_path / name))
