"""The matrix of tiny models: all there, none trivial, the same for the same seed, and able to run as it says it can."""

import functools
from collections.abc import Iterator

import pytest
import torch
import transformers
from torch import Tensor, nn

from interp.hooks.errors import InputsError, ModelError
from interp.hooks.examples.example import example
from interp.zoo.families import FAMILIES, Tiny, stir, tiny
from interp.zoo.plain import AttentionOnly, AttentionOnlyConfig

PROMISED = (
    "gpt2 gpt_neox opt llama mistral qwen2 qwen3 gemma2 gemma3 phi3 gpt_oss deepseek_v3 falcon gptj bloom bert roberta "
    "t5 bart whisper vit deit dinov2 dinov2_with_registers dinov3_vit beit swin clip siglip llava llava_next qwen2_vl "
    "qwen2_5_vl qwen3_vl internvl paligemma smolvlm blip2 mllama transformer_bridge plain"
).split()
HF = [family for family in FAMILIES.values() if family.builder == "transformers"]
DEPTHS = ("num_hidden_layers", "num_decoder_layers", "encoder_layers", "decoder_layers", "depth", "depths")
CASES = [(name, attn) for name, family in FAMILIES.items() for attn in family.attentions()]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small spend their time waking threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def built(name: str, attn: str | None = None, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = tiny(name, attn=attn, dtype=dtype)
    return getattr(model, "original_model", model)


def results(output: object) -> Iterator[Tensor]:
    """Every floating tensor a forward call hands back at its top level."""
    fields = output.values() if isinstance(output, dict) else vars(output).values()
    return (value for value in fields if isinstance(value, Tensor) and value.is_floating_point())


@torch.no_grad()
def run(model: nn.Module, **asked: object) -> list[Tensor]:
    return list(results(model(**example(model, **asked))))


def test_all_promised_families_are_there():
    assert set(PROMISED) <= set(FAMILIES)
    types = {getattr(transformers, family.cls).config_class.model_type for family in HF}
    assert len(types) >= 38


@pytest.mark.parametrize("name", FAMILIES)
def test_one_seed_is_one_model(name: str):
    state = torch.get_rng_state()
    one, two, other = tiny(name, seed=3), tiny(name, seed=3), tiny(name, seed=4)
    assert torch.equal(state, torch.get_rng_state())
    assert not one.training
    assert one.state_dict().keys() == two.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_no_weight_is_trivial(name: str):
    for label, weight in built(name).named_parameters():
        assert weight.isfinite().all(), label
        assert weight.numel() == 1 or weight.std() > 0.02, label
        assert weight.numel() > 1 or weight.abs() > 0.05, f"{label}: a closed gate hides what is behind it"


@pytest.mark.parametrize("family", HF, ids=lambda family: family.name)
def test_two_layers_at_least_and_attention_as_asked(family: Tiny):
    for attn in family.attentions():
        config = built(family.name, attn).config
        parts = [config, *(getattr(config, key) for key in config.sub_configs)]
        assert {part._attn_implementation for part in parts} == {attn}
    depths = [getattr(part, key) for part in parts for key in DEPTHS if hasattr(part, key)]
    assert depths
    assert min(len(depth) if isinstance(depth, list) else depth for depth in depths) >= 2


@pytest.mark.parametrize("family", HF, ids=lambda family: family.name)
def test_what_is_said_of_sdpa_is_what_the_class_says(family: Tiny):
    assert getattr(transformers, family.cls)._supports_sdpa == ("sdpa" not in family.na)


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_is_the_same_model_rounded(name: str):
    pairs = zip(built(name).parameters(), built(name, None, torch.bfloat16).parameters(), strict=True)
    for exact, rounded in pairs:
        assert rounded.dtype is torch.bfloat16
        torch.testing.assert_close(exact, rounded.float(), atol=2**-8, rtol=2**-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "attn"), CASES)
def test_runs_and_is_finite(name: str, attn: str, dtype: torch.dtype):
    model = built(name, attn, dtype)
    for batch in (1, 3):
        for padding in FAMILIES[name].paddings():
            outputs = run(model, batch=batch, padding=padding)
            assert outputs
            assert all(output.isfinite().all() for output in outputs)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if len(family.attentions()) == 2])
def test_sdpa_and_eager_agree_where_words_are(name: str):
    """Two implementations of one attention; they may differ only in what padding rows compute."""
    for padding in FAMILIES[name].paddings():
        asked = example(built(name), batch=3, padding=padding)
        with torch.no_grad():
            one, two = (next(results(built(name, attn)(**asked))) for attn in ("sdpa", "eager"))
        mask = asked.get("decoder_attention_mask", asked.get("attention_mask"))
        if mask is not None and one.shape[:2] == mask.shape:
            one, two = one[mask.bool()], two[mask.bool()]
        torch.testing.assert_close(one, two, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "gptj", "bloom", "transformer_bridge", "plain"])
def test_a_setting_the_family_lacks_is_refused_with_the_reason(name: str):
    (lacking,) = {"sdpa", "eager"} - set(FAMILIES[name].attentions())
    with pytest.raises(ModelError, match=FAMILIES[name].na[lacking]):
        tiny(name, attn=lacking)


def test_an_unknown_family_is_refused():
    with pytest.raises(ModelError, match="no tiny family 'gpt5'; there are gpt2, gpt_neox"):
        tiny("gpt5")


def test_sinks_caps_windows_and_layer_scales_act():
    """Without the thing the family is in the matrix for, its numbers change."""
    silenced = {
        "gpt_oss": lambda model: model.model.layers[0].self_attn.sinks.fill_(-1e4),
        "gemma2": lambda model: setattr(model.model.layers[0].self_attn, "attn_logit_softcapping", None),
        "mistral": lambda model: setattr(model.config, "sliding_window", None),
        "dinov2": lambda model: model.dinov2.encoder.layer[0].layer_scale1.lambda1.fill_(1.0),
        "t5": lambda model: model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.fill_(0.0),
        "mllama": lambda model: model.model.language_model.layers[1].cross_attn_attn_gate.fill_(0.0),
    }
    for name, silence in silenced.items():
        model = tiny(name)
        with torch.no_grad():
            before = run(model)[0]
            silence(model)
            after = run(model)[0]
        assert (before - after).abs().max() > 1e-2, name


@pytest.mark.parametrize("norm", [False, True])
def test_the_plain_model_is_attention_and_nothing_else(norm: bool):
    """Against the sum over heads written out, in float64."""
    config = AttentionOnlyConfig(vocab=11, d_model=6, heads=2, d_head=4, layers=2, context=5, positions=norm, norm=norm)
    model = AttentionOnly(config).double().eval()
    stir(model)
    ids = torch.randint(11, (2, 5))
    x = model.embed.weight[ids] + (model.positions.weight if norm else 0)
    for block in model.blocks:
        read = block.norm(x)
        for head in range(2):
            of = slice(4 * head, 4 * head + 4)
            q, k, v = (read @ getattr(block.attn, side).weight[of].T for side in "qkv")
            scores = (q @ k.mT / 2).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
            x = x + scores.softmax(-1) @ v @ block.attn.o.weight[:, of].T
    torch.testing.assert_close(model(ids).logits, model.norm(x) @ model.unembed.weight.T)


def test_the_plain_model_refuses_more_tokens_than_it_has_positions():
    with pytest.raises(InputsError, match=r"at most 3 tokens.*got 4"):
        AttentionOnly(AttentionOnlyConfig(context=3))(torch.zeros(1, 4, dtype=torch.long))
