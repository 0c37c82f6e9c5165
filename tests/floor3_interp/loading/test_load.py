"""Models by name: local directories in hub layout, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokens import bpe

import interp
from interp.hooks.errors import ModelError
from interp.hooks.examples.example import example
from interp.zoo import catalog
from interp.zoo.families import tiny
from interp.zoo.plain import AttentionOnly


@pytest.mark.parametrize("family", ["gpt2", "llama", "vit", "llava", "t5"])
def test_a_directory_gives_the_model_that_was_saved(family: str, tmp_path: Path) -> None:
    module = tiny(family)
    module.save_pretrained(tmp_path)
    m = interp.load(tmp_path)
    assert type(m.module) is type(module)
    assert m.processor is None
    assert not m.module.training
    kwargs = example(module, batch=2)
    site = "L0.z" if len(m.towers) == 1 else f"{next(iter(m.towers))}.L0.z"
    found, expected = (one.run(kwargs, record=site) for one in (m, interp.attach(module)))
    assert torch.equal(found["logits"], expected["logits"])
    assert torch.equal(found[site], expected[site])
    assert found.meta["model_hash"] == expected.meta["model_hash"]


def test_a_tokenizer_comes_along(tmp_path: Path) -> None:
    tiny("gpt2").save_pretrained(tmp_path)
    bpe().save_pretrained(tmp_path)
    m = interp.load(str(tmp_path))
    assert m.tokenizer is not None
    assert m.tokenizer.decode(m.tokenizer("Mary").input_ids) == "Mary"


def test_dtype_and_implementation_are_as_asked(tmp_path: Path) -> None:
    tiny("gpt2", dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert interp.load(tmp_path).dtype == torch.bfloat16
    m = interp.load(tmp_path, dtype=torch.float64, attn="eager")
    assert m.dtype == torch.float64
    assert m.config._attn_implementation == "eager"
    assert m.check().passed


def test_the_attention_only_model_comes_back_from_a_directory(tmp_path: Path) -> None:
    catalog.export("induction", tmp_path / "copy")
    m, shipped = interp.load(tmp_path / "copy"), interp.load("zoo:induction")
    assert isinstance(m.module, AttentionOnly)
    assert not m.module.training
    ids = {"input_ids": m.tokenizer("w3 w7 w5 w3 w7", return_tensors="pt")["input_ids"]}
    found, expected = (one.run(ids, record="L1.z") for one in (m, shipped))
    assert torch.equal(found["logits"], expected["logits"])
    assert torch.equal(found["L1.z"], expected["L1.z"])
    assert found.meta["model_hash"] == expected.meta["model_hash"]
    assert m.tokenizer.decode([found["logits"][0, -1].argmax().item()]).strip() == "w5"


def test_options_reach_a_zoo_model_or_are_refused(tmp_path: Path) -> None:
    m = interp.load("zoo:planted-and", dtype="float64", attn="eager", device="cpu")
    assert m.dtype == torch.float64
    assert m.config._attn_implementation == "eager"
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel: expected dtype, device or attn.*got revision"):
        interp.load("zoo:planted-and", revision="main")
    with pytest.raises(ModelError, match=r"AttentionOnly.*got attn"):
        interp.load("zoo:induction", attn="eager")
    catalog.export("induction", tmp_path / "copy")
    assert interp.load(tmp_path / "copy", dtype=torch.float64).dtype == torch.float64
    with pytest.raises(ModelError, match=r"AttentionOnly.*got device_map"):
        interp.load(tmp_path / "copy", device_map="auto")


def test_a_pickle_is_refused_unless_trusted(tmp_path: Path) -> None:
    module = tiny("gpt2")
    module.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, a pickle.*pickle=True"):
        interp.load(tmp_path)
    m = interp.load(tmp_path, pickle=True)
    assert torch.equal(m.module.transformer.wte.weight, module.transformer.wte.weight)


def test_a_directory_without_config_or_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        interp.load(tmp_path)
    tiny("gpt2").config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no \*\.safetensors"):
        interp.load(tmp_path)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c"])
def test_a_path_that_is_not_there_is_refused_before_any_hub_is_asked(name: str) -> None:
    with pytest.raises(ModelError, match="no directory"):
        interp.load(name)


def test_code_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    tiny("gpt2").save_pretrained(tmp_path)
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    config = json.loads((tmp_path / "config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": own}))
    with pytest.raises((ModelError, ValueError), match=r"trust_remote_code|remote_code"):
        interp.load(tmp_path)
    assert not ran.exists()


def test_a_class_that_the_checkpoint_does_not_name_is_found_by_its_config(tmp_path: Path) -> None:
    tiny("gpt2").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": None}))
    assert type(interp.load(tmp_path).module).__name__ == "GPT2LMHeadModel"
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_in_words(device: str) -> None:
    with pytest.raises(ModelError, match=f"no device '{device}' here"):
        interp.load("zoo:planted-and", device=device)
