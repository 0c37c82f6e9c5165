"""Statistics where keys carry no ids: frames of sound, another sequence, padding that the model sees, patches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from spoken import tone, wav2vec, whisper
from torch import Tensor

import interp
from interp.hooks.errors import InputsError
from interp.hooks.examples.example import example
from interp.zoo.families import tiny

ACROSS = ["entropy", "max", "argmax", "topk:2", "received", "received_mean", "mass:audio", "mass:pad", "first"]


def heard() -> tuple[interp.Model, Any]:
    m = interp.attach(*whisper())
    return m, m.prepare(audio=[tone(0.3), tone(0.8, seed=1)], language="en", continuation=" yes or no")


def apart(p: Tensor) -> Tensor:
    i, j = torch.arange(p.shape[-2]), torch.arange(p.shape[-1])
    return (p.double() * (i[:, None] - j[None]).abs()).sum(-1)


def test_distances_between_frames_of_sound_are_counted_in_positions() -> None:
    """They were 0 everywhere: positions without ids were taken for patches that are nowhere."""
    m, x = heard()
    found = m.attention(x, stats=["distance", "previous", "self"], heads="encoder.L*")
    tape = m.run(x, record="encoder.L*.pattern")
    real = x.tower("encoder").valid
    for layer in range(2):
        p = tape[f"encoder.L{layer}.pattern"] * real[:, None, :, None]
        got = found.at(f"encoder.L{layer}", "distance").double()
        assert got[0, :, :15].min() > 1
        torch.testing.assert_close(got, apart(p), atol=1e-4, rtol=1e-4)
        assert (got[0, :, 15:] == 0).all()


@pytest.mark.parametrize("name", ["mask", "signal"])
def test_frames_of_wav2vec(name: str) -> None:
    m = interp.attach(*wav2vec("layer" if name == "mask" else "group"))
    x = m.prepare(audio=[tone(0.03), tone(0.02, seed=1)])
    found = m.attention(x, stats=["distance", "mass:pad", "entropy"])
    p = m.run(x, record="L1.pattern")["L1.pattern"] * x.valid[:, None, :, None]
    torch.testing.assert_close(found.at("L1", "distance").double(), apart(p), atol=1e-4, rtol=1e-4)
    pad = found.at("L1", "mass:pad")[1, :, :31]
    assert (pad.max() == 0) == (name == "mask")
    assert found.mean("entropy").shape == (2, 2)


def test_vectors_in_the_place_of_words_are_at_a_distance() -> None:
    m = interp.attach(tiny("llama"))
    ids = torch.randint(5, 90, (2, 9))
    vectors = m.module.get_input_embeddings()(ids).detach()
    given, words = (m.attention(x, stats="distance") for x in ({"inputs_embeds": vectors}, {"input_ids": ids}))
    torch.testing.assert_close(given.at("L1", "distance"), words.at("L1", "distance"))


@pytest.mark.parametrize("keys", ["seen", "real"])
def test_cross_attention_by_the_recorded_pattern(keys: Any) -> None:
    m, x = heard()
    found = m.attention(x, stats=ACROSS, heads="cross.L*", keys=keys)
    real = x.tower("encoder").valid
    tape = m.run(x, record="cross.L*.pattern")
    for layer in range(2):
        p = tape[f"cross.L{layer}.pattern"].double()
        assert p[0, :, :, 15:].sum(-1).min() > 0.3  # the model looks at filling
        if keys == "real":
            p = p * real[:, None, None]
            p = p / p.sum(-1, keepdim=True)
        wanted = {
            "entropy": -torch.where(p > 0, p * p.clamp(min=1e-300).log(), 0.0).sum(-1),
            "max": p.amax(-1),
            "received": p.sum(2),
            "mass:audio": (p * real[:, None, None]).sum(-1),
            "mass:pad": (p * ~real[:, None, None]).sum(-1),
            "first": p[..., 0],
            "topk:2": p.topk(2).values,
        }
        for name, value in wanted.items():
            got = found.at(f"cross.L{layer}", name).double()
            torch.testing.assert_close(got, value, atol=2e-5, rtol=1e-4, msg=f"{name} of layer {layer}")
        assert torch.equal(found.at(f"cross.L{layer}", "argmax"), p.argmax(-1))
    assert ("real keys" in repr(found)) == (keys == "real")


@pytest.mark.parametrize("stat", ["distance", "previous", "self"])
@pytest.mark.parametrize("name", ["whisper", "bart", "t5"])
def test_places_of_two_sequences_are_not_compared(name: str, stat: str) -> None:
    """It crashed on Whisper, and gave a number without meaning on the others."""
    m = interp.attach(tiny(name))
    x = m.inputs(example(m.module, batch=2, seed=1))
    with pytest.raises(InputsError, match=rf"(?s)cross.L0.attention is cross-attention.*{stat} has no meaning"):
        m.attention(x, stats=["entropy", stat], heads="cross.L*")
    assert m.attention(x, stats=["entropy", stat], heads="decoder.L*").names == ("entropy", stat)


def test_cross_layers_among_others_are_named() -> None:
    m = interp.attach(tiny("mllama"))
    x = m.inputs(example(m.module, batch=1, seed=1))
    crossed = [one.index for one in m.anatomy.towers["text"].layers if one.kind == "cross"]
    with pytest.raises(InputsError, match=rf"text.L{crossed[0]}.attention is cross-attention"):
        m.attention(x, stats=["distance"], heads="text.L*")


def test_key_sets_of_mllama_are_of_its_keys() -> None:
    """Its vision tower has filler between the tiles that cross-attention does not see: sets were read off by columns
    of the tower."""
    m = interp.attach(tiny("mllama"))
    call = dict(example(m.module, batch=1, seed=1))
    tiles = call["aspect_ratio_mask"].shape[-1]
    for name in ("aspect_ratio_mask", "cross_attention_mask"):
        call[name] = torch.ones_like(call[name])
    x = m.inputs(call)
    index = next(one.index for one in m.anatomy.towers["text"].layers if one.kind == "cross")
    found = m.attention(x, stats=["mass:cls", "mass:image"], heads=f"text.L{index}")
    p = m.run(x, record=f"text.L{index}.pattern")[f"text.L{index}.pattern"].double()
    one_tile = p.shape[3] // tiles
    cls = p[..., ::one_tile].sum(-1)
    torch.testing.assert_close(found.at(f"text.L{index}", "mass:cls").double(), cls, atol=1e-5, rtol=1e-5)
    total = found.at(f"text.L{index}", "mass:image").double() + cls
    torch.testing.assert_close(total, torch.ones_like(cls), atol=1e-5, rtol=1e-5)


def test_a_row_that_looks_at_the_class_token_alone_is_at_no_distance() -> None:
    """The weight on patches is what a distance is averaged over, however little of it there is."""
    torch.manual_seed(0)
    config = hf.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                          image_size=16, patch_size=4)  # fmt: skip
    m = interp.attach(hf.ViTModel(config).eval())
    x = m.inputs({"pixel_values": torch.randn(1, 3, 16, 16)})
    whole = m.attention(x, stats="distance", heads="L0").at("L0", "distance")
    keys = torch.zeros(1, 17, dtype=torch.bool)
    keys[0, 0] = True
    with m.edited([interp.edits.BiasKeys("L0.H*", keys=keys, amount=3.0)]):
        more = m.attention(x, stats=["distance", "mass:cls"], heads="L0")
    assert more.at("L0", "mass:cls").min() > 0.3
    torch.testing.assert_close(more.at("L0", "distance"), whole, atol=1e-4, rtol=1e-4)
    with m.edited([interp.edits.BiasKeys("L0.H*", keys=keys, amount=100.0)]):
        assert m.attention(x, stats="distance", heads="L0").at("L0", "distance").abs().max() == 0


def test_real_keys_of_other_models_are_those_they_see() -> None:
    m = interp.attach(tiny("bart"))
    x = m.inputs(example(m.module, batch=2, padding="right", seed=1))
    seen, real = (m.attention(x, stats=["entropy", "max"], heads="cross.L*", keys=k) for k in ("seen", "real"))
    for name in ("entropy", "max"):
        torch.testing.assert_close(seen.at("cross.L0", name), real.at("cross.L0", name))
    with pytest.raises(InputsError, match="leave keys= out"):
        m.attention(x, stats="entropy", heads="encoder.L*", keys="real", impl="rows")
