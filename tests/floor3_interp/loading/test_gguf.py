"""Models in a GGUF file: the same model as was written, within the rounding of how it was packed, and as transformers
itself unpacks it; and the cache that a second load reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ggufs
import pytest
import torch
from safetensors.torch import load_file, save_file

import interp
from interp.hooks.errors import ModelError
from interp.loading.gguf import weights

pytest.importorskip("gguf", reason="the extra gguf is not installed: pip install 'interp[gguf]'")

IDS = torch.arange(24)[None] * 7 % 96


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        return module(IDS).logits


def rounding(kind: str, value: torch.Tensor) -> torch.Tensor:
    """The most that packing may change a weight by."""
    if kind == "F32" or value.dim() == 1:
        return torch.full_like(value, 1e-6)  # Gemma's norms are stored plus one
    if kind == "F16":
        return value.abs() * 2**-11 + 2**-25
    blocks = value.reshape(-1, 32)
    step = blocks.abs().amax(1, keepdim=True) / 127
    return (step * (0.5 + 127 * 2**-11)).expand_as(blocks).reshape(value.shape)


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize("architecture", sorted(ggufs.MODELS))
def test_a_file_gives_the_model_that_was_written(architecture: str, kind: str, tmp_path: Path) -> None:
    source = ggufs.saved(tmp_path / "m.gguf", architecture, kind=kind)
    m = interp.load(tmp_path / "m.gguf")
    assert type(m.module) is type(source)
    assert m.dtype == torch.float32
    assert not m.module.training
    found, wanted = m.module.state_dict(), source.state_dict()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        packed = value.T if architecture == "gpt2" and "weight" in name and ".c_" in name else value
        near = (found[name] - value).abs()
        assert bool(((near.T if packed is not value else near) <= rounding(kind, packed)).all()), name
    if kind == "F32":  # every number of the config is the source's, or this differs
        torch.testing.assert_close(logits(m.module), logits(source), atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("architecture", ["gemma3", "gpt2", "llama", "qwen2"])
def test_a_file_gives_what_transformers_unpacks(architecture: str, kind: str, tmp_path: Path) -> None:
    """Its own reader takes an unsaid vocabulary for the class's default, so the file lists one."""
    import transformers

    words = {"tokenizer.ggml.tokens": [f"w{n}" for n in range(96)]}
    ggufs.saved(tmp_path / "m.gguf", architecture, kind=kind, more=words)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf")
    ours = interp.load(tmp_path / "m.gguf").module
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in theirs.state_dict().items())
    assert torch.equal(logits(theirs.eval()), logits(ours))


def test_a_loaded_model_is_checked_and_saves_as_a_plain_one(tmp_path: Path) -> None:
    import transformers

    ggufs.saved(tmp_path / "m.gguf", "llama", kind="Q8_0")
    m = interp.load(tmp_path / "m.gguf")
    assert m.check().passed
    m.module.save_pretrained(tmp_path / "plain")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert torch.equal(logits(plain.eval()), logits(m.module))
    assert m.config._name_or_path == str(tmp_path / "m.gguf")


def test_a_directory_that_holds_one_file_gives_it(tmp_path: Path) -> None:
    folder = tmp_path / "held"
    folder.mkdir()
    source = ggufs.saved(folder / "m.gguf", kind="F32")
    (folder / "config.json").write_text("{}")  # as repositories of GGUF files have
    assert torch.equal(interp.load(folder).module.lm_head.weight, source.lm_head.weight)
    ggufs.saved(folder / "n.gguf")
    with pytest.raises(ModelError, match=r"holds 2 models: give the path of one of .*m\.gguf, .*n\.gguf"):
        interp.load(folder)


def test_dtype_and_attention_are_as_asked(tmp_path: Path) -> None:
    ggufs.saved(tmp_path / "m.gguf")
    m = interp.load(tmp_path / "m.gguf", dtype="bfloat16", attn="eager")
    assert m.dtype == torch.bfloat16
    assert m.config._attn_implementation == "eager"


def test_generation_stops_at_the_end_of_the_text_and_of_a_turn(tmp_path: Path) -> None:
    ends = {f"tokenizer.ggml.{name}_token_id": n for name, n in (("bos", 1), ("eos", 2), ("eot", 5), ("padding", 0))}
    ggufs.saved(tmp_path / "m.gguf", more=ends)
    said = interp.load(tmp_path / "m.gguf").module.generation_config
    assert (said.bos_token_id, said.eos_token_id, said.pad_token_id) == (1, [2, 5], 0)


def test_a_second_load_reads_the_cache_and_a_changed_file_does_not(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.gguf"
    source = ggufs.saved(path, kind="F32")
    first = interp.load(path).module.lm_head.weight
    (folder,) = cache.iterdir()
    assert f"unpacking m.gguf to {folder}" in capsys.readouterr().err
    held = load_file(folder / "model.safetensors")
    save_file(
        {**held, "lm_head.weight": held["lm_head.weight"] + 1}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    assert torch.equal(interp.load(path).module.lm_head.weight, first + 1)
    assert not capsys.readouterr().err.count("unpacking")
    data = bytearray(path.read_bytes())
    at = bytes(data).index(source.lm_head.weight.detach().numpy().tobytes()[:64])
    data[at] ^= 1
    path.write_bytes(data)
    changed = interp.load(path).module.lm_head.weight
    assert int((changed != first).sum()) == 1
    assert len(list(cache.iterdir())) == 2


def test_a_model_of_several_shards_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(weights, "SHARD", 20_000)
    source = ggufs.saved(tmp_path / "m.gguf", kind="F32")
    m = interp.load(tmp_path / "m.gguf")
    assert len(list(next(cache.iterdir()).glob("*.safetensors"))) > 2
    assert all(torch.equal(value, m.module.state_dict()[name]) for name, value in source.state_dict().items())


def test_what_cannot_be_unpacked_leaves_nothing_behind(tmp_path: Path, cache: Path) -> None:
    tokens = ggufs.vocabulary("gpt2", [f"w{n}" for n in range(96)], pre="of-another-world", merges=["w 1"])
    ggufs.saved(tmp_path / "m.gguf", tokenizer=tokens)
    with pytest.raises(ModelError, match="of-another-world"):
        interp.load(tmp_path / "m.gguf")
    assert not list(cache.iterdir())
