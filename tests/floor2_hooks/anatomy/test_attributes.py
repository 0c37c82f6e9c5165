"""Every listed attribute of a config: a tiny model with it on and off passes the checks, or is refused by its name."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import interp
from interp.hooks.anatomy.attributes import ATTRIBUTES, BY_NAME, attributes
from interp.hooks.errors import ModelError, SiteError
from interp.zoo.families import DEEPSEEK, DINO, GEMMA, OPT, SLIDING, SMALL, TEXT, WIDE, stir, tiny

PARALLEL = frozenset({"residual"})
"""Checks that do not apply to parallel, post-norm and scaled blocks, and to attention outside the interface."""
OUTSIDE = frozenset({"pattern"})
LLAMA4 = {
    **WIDE, "num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 0], "floor_scale": 2, "attn_scale": 0.9,
    "num_local_experts": 2, "intermediate_size_mlp": 32, "interleave_moe_layer_step": 2, "attention_chunk_size": 64,
}  # fmt: skip
SHARED = {
    **WIDE, "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 4,
    "vocab_size_per_layer_input": 160, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8,
}  # fmt: skip
MAMBA = {
    **TEXT, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2,
}  # fmt: skip
FALCON_H1 = {**MAMBA, "mamba_d_ssm": 32, "mamba_d_head": 8}
OSS = {
    **SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2,
    "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64},
}  # fmt: skip
NEXT = {
    **WIDE, "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4,
    "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
}  # fmt: skip
MINICPM = {**DEEPSEEK, "num_key_value_heads": 4}


@dataclass(frozen=True)
class Case:
    """A class with the attribute on and off, where it can be off. `without`: checks that do not apply to it."""

    cls: str
    config: dict[str, Any]
    on: Any
    off: Any = ...
    without: frozenset[str] = field(default_factory=frozenset)


CASES = {
    "attn_logit_softcapping": Case("Gemma2ForCausalLM", GEMMA, 2.0, None),
    "final_logit_softcapping": Case("Gemma2ForCausalLM", GEMMA, 3.0, None),
    "attention_multiplier": Case("GraniteForCausalLM", TEXT, 0.3, 1.0),
    "query_pre_attn_scalar": Case("Gemma3ForCausalLM", GEMMA, 12, 256),
    "scale_attn_by_inverse_layer_idx": Case("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4}, True, False),
    "key_multiplier": Case("FalconH1ForCausalLM", FALCON_H1, 3.0, 1.0, PARALLEL),
    "residual_multiplier": Case("GraniteForCausalLM", TEXT, 0.4, 1.0),
    "scale_depth": Case("MiniCPM3ForCausalLM", MINICPM, 1.4, 1.0),
    "embedding_multiplier": Case("GraniteForCausalLM", TEXT, 3.0, 1.0),
    "scale_emb": Case("MiniCPM3ForCausalLM", MINICPM, 3, 1),
    "logits_scaling": Case("GraniteForCausalLM", TEXT, 2.0, 1.0),
    "logit_scale": Case("CohereForCausalLM", TEXT, 0.3, 1.0, PARALLEL),
    "dim_model_base": Case("MiniCPM3ForCausalLM", MINICPM, 8, 32),
    "use_parallel_residual": Case("GPTNeoXForCausalLM", SMALL, True, False, PARALLEL),
    "parallel_attn": Case("FalconForCausalLM", SMALL, True, False, PARALLEL | OUTSIDE),
    "new_decoder_architecture": Case("FalconForCausalLM", SMALL, True, False, PARALLEL | OUTSIDE),
    "do_layer_norm_before": Case("OPTForCausalLM", OPT, True, False, PARALLEL),
    "use_qk_norm": Case("CohereForCausalLM", TEXT, True, False, PARALLEL),
    "qk_layernorm": Case("PersimmonForCausalLM", SMALL, True, False),
    "clip_qkv": Case("OlmoForCausalLM", TEXT, 0.5, None),
    "multi_query": Case("FalconForCausalLM", SMALL, True, False, PARALLEL | OUTSIDE),
    "alibi": Case("FalconForCausalLM", {**SMALL, "parallel_attn": False}, True, False, OUTSIDE),
    "sliding_window": Case("MistralForCausalLM", TEXT, 4, None),
    "layer_types": Case("Gemma3ForCausalLM", GEMMA, ["full_attention", "sliding_attention", "full_attention"]),
    "local_attention": Case("ModernBertForMaskedLM", {**SMALL, "num_hidden_layers": 3}, 4, 64),
    "attention_chunk_size": Case("Llama4ForCausalLM", LLAMA4, 4, 64),
    "no_rope_layers": Case("SmolLM3ForCausalLM", TEXT, [1, 0], [1, 1]),
    "attn_temperature_tuning": Case("Llama4ForCausalLM", LLAMA4, True, False),
    "sinks": Case("GptOssForCausalLM", OSS, None),
    "layerscale_value": Case("Dinov2Model", DINO, 0.7),
    "layer_scale_init_value": Case("BeitModel", {**DINO, "drop_path_rate": 0.0}, 0.7, 0.0),
    "gate": Case("Qwen3NextForCausalLM", NEXT, None),
    "kv_lora_rank": Case("DeepseekV3ForCausalLM", DEEPSEEK, 12),
    "num_kv_shared_layers": Case("Gemma4ForCausalLM", SHARED, 2, 0, PARALLEL),
    "altup_num_inputs": Case(
        "Gemma3nForCausalLM", {**SHARED, "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 4}, 2, ..., PARALLEL
    ),
    "hidden_size_per_layer_input": Case("Gemma4ForCausalLM", SHARED, 8, ..., PARALLEL),
    "attn_layer_indices": Case("BambaForCausalLM", {**MAMBA, "attn_rotary_emb": 8}, [1]),
    "attn_layer_period": Case(
        "JambaForCausalLM",
        {**TEXT, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4, "num_experts": 2,
         "num_experts_per_tok": 1, "use_mamba_kernels": False}, 2,
    ),
    "block_types": Case(
        "RecurrentGemmaForCausalLM", {**TEXT, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 4},
        ["recurrent", "recurrent", "attention"],
    ),
    "attention_out_multiplier": Case("FalconH1ForCausalLM", FALCON_H1, 0.7, 1.0, PARALLEL),
}  # fmt: skip
"""By attribute; `cross_attention_layers` is Mllama's, which has towers and is looked at below."""


def build(cls: str, config: dict[str, Any], **more: Any) -> nn.Module:
    made = getattr(transformers, cls)
    torch.manual_seed(0)
    fresh = {name: list(value) if isinstance(value, list) else value for name, value in {**config, **more}.items()}
    model = made._from_config(made.config_class(**fresh))
    stir(model)
    return model.eval()


def words(model: nn.Module) -> Any:
    return interp.attach(model).example()


def test_every_attribute_has_its_case() -> None:
    handled = {attribute.name for attribute in ATTRIBUTES if attribute.verdict == "handled"}
    assert handled == set(CASES) | set(SHARED) | {"cross_attention_layers"}
    assert len(BY_NAME) == len(ATTRIBUTES) >= 45


@pytest.mark.parametrize("name", CASES)
def test_on_and_off_pass_the_checks_and_differ(name: str) -> None:
    case = CASES[name]
    in_config = name not in ("sinks", "gate")
    on = build(case.cls, case.config, **({name: case.on} if in_config else {}))
    checked(on, case.without)
    if name != "gate":
        assert name in attributes(on)
    if case.off is ...:
        return
    off = build(case.cls, case.config, **{name: case.off})
    checked(off, case.without)
    weights = off.state_dict()
    same = {n: t for n, t in on.state_dict().items() if n in weights and weights[n].shape == t.shape}
    off.load_state_dict(same, strict=False)
    with torch.no_grad():
        one, other = (model(**words(on)) for model in (on, off))
    assert not torch.allclose(one[0], other[0], atol=1e-3), "the attribute does nothing in this tiny model"


def checked(model: nn.Module, without: frozenset[str]) -> None:
    report = interp.attach(model).check()
    report.raise_failed()
    verdicts = {line.name: line.verdict for line in report.lines}
    assert {name for name, verdict in verdicts.items() if verdict == "n/a"} <= without
    assert verdicts["sum"] == verdicts["zero"] == "pass"


def test_mllama_gates() -> None:
    model = tiny("mllama")
    assert "text_config.cross_attention_layers" in attributes(model)
    report = interp.attach(model).check()
    assert report.passed
    assert {line.verdict for line in report.lines if line.name in ("text.sum", "text.zero")} == {"pass"}
    m = interp.attach(model)
    tape = m.run(m.example(), record=["text.L1.attn_out", "text.L1.attn_write"])
    gate = model.get_parameter("model.language_model.layers.1.cross_attn_attn_gate").tanh()
    torch.testing.assert_close(tape["text.L1.attn_write"], gate * tape["text.L1.attn_out"], rtol=1e-4, atol=1e-5)


def test_what_granite_writes_is_a_multiple_of_what_it_computes() -> None:
    m = interp.attach(build("GraniteForCausalLM", TEXT, residual_multiplier=0.4))
    tape = m.run(m.example(), record=["L1.attn_out", "L1.attn_write", "L1.mlp_out", "L1.mlp_write"])
    for stage in ("attn", "mlp"):
        torch.testing.assert_close(tape[f"L1.{stage}_write"], 0.4 * tape[f"L1.{stage}_out"], rtol=1e-4, atol=1e-5)


def test_layer_scale_is_in_the_write_and_not_in_the_output() -> None:
    model = build("Dinov2Model", DINO)
    m = interp.attach(model)
    tape = m.run(m.example(), record=["L1.attn_out", "L1.attn_write"])
    scale = model.get_parameter("encoder.layer.1.layer_scale1.lambda1")
    torch.testing.assert_close(tape["L1.attn_write"], scale * tape["L1.attn_out"], rtol=1e-4, atol=1e-5)


def gated() -> tuple[nn.Module, Any]:
    model = build("Qwen3NextForCausalLM", NEXT)
    return model, model.get_submodule("model.layers.1.self_attn")


def test_z_behind_a_gate_is_what_the_projection_reads() -> None:
    """Qwen3-Next: pattern times v, times a sigmoid of the second half of each head's query projection."""
    model, attention = gated()
    m = interp.attach(model)
    tape = m.run(m.example(), record=["L1.attn_in", "L1.pattern", "L1.v", "L1.z", "L1.result", "L1.attn_out"])
    with torch.no_grad():
        gate = attention.q_proj(tape["L1.attn_in"]).unflatten(-1, (4, 32))[..., 16:].sigmoid()
        v = tape["L1.v"].repeat_interleave(2, 2)
        expected = torch.einsum("bhij,bjhd->bihd", tape["L1.pattern"], v) * gate
        written = attention.o_proj(expected.flatten(-2))
    torch.testing.assert_close(tape["L1.z"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tape["L1.attn_out"], written, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tape["L1.result"].sum(2), written, rtol=1e-4, atol=1e-5)


def test_edits_and_gradients_behind_a_gate() -> None:
    model, _ = gated()
    m = interp.attach(model)
    x = m.example()
    tape = m.run(x, record="L1.H2.z", grad=True)
    slope = tape.grad(tape["logits"][0, -1, 7])["L1.H2.z"]
    along = torch.randn(slope.shape, generator=torch.Generator().manual_seed(0))
    ends = [m.run(x, edits=[interp.Add("L1.H2.z", along * by)])["logits"][0, -1, 7] for by in (1e-2, -1e-2)]
    torch.testing.assert_close((slope * along).sum(), (ends[0] - ends[1]) / 2e-2, rtol=2e-2, atol=1e-4)
    edited = m.run(x, edits=[interp.Zero("L1.H2.z", positions=[-1])])["logits"]
    plain = m.run(x)["logits"]
    assert torch.equal(edited[:, :-1], plain[:, :-1])
    assert not torch.allclose(edited[:, -1], plain[:, -1], atol=1e-3)
    masked = m.run(x, edits=[interp.MaskKeys("L1.H2", keys=[0])], record=["L1.z"])["L1.z"]
    assert torch.equal(masked[:, :, :2], m.run(x, record="L1.z")["L1.z"][:, :, :2])


def test_something_that_mixes_heads_is_no_gate() -> None:
    model, attention = gated()
    mixed = attention.o_proj.register_forward_pre_hook(lambda _, args: (args[0].roll(16, -1),))
    report = interp.attach(model).check()
    mixed.remove()
    assert not report.passed
    assert "depends on more than its own head's attention" in {line.name: line.note for line in report.lines}["sum"]


def test_layers_without_attention_are_no_layers_of_the_tower() -> None:
    model, _ = gated()
    m = interp.attach(model)
    assert m.sites("L*.z") == ["L1.z"]
    with pytest.raises(SiteError, match="no layer 0"):
        m.sites("L0.z")


def test_several_residual_streams_are_refused_as_sites() -> None:
    case = CASES["altup_num_inputs"]
    m = interp.attach(build(case.cls, case.config, altup_num_inputs=2))
    for site in ("L1.resid_pre", "L1.resid_post", "L1.attn_write"):
        with pytest.raises(SiteError, match="several parallel streams"):
            m.sites(site)
    with pytest.raises(SiteError, match="besides the MLP"):
        m.sites("L1.neurons")
    with pytest.raises(SiteError, match="several parallel streams"):
        m.run(m.example(), record="embed")


REFUSED = {
    "lambda_std_dev": ("DiffLlamaForCausalLM", TEXT),
    "hc_mult": ("DeepseekV4ForCausalLM", WIDE),
}
SHARED = {
    "num_hidden_groups": ("AlbertForMaskedLM", {**SMALL, "embedding_size": 16}, ["L0@0.z", "L0@1.z"]),
    "num_mem_blocks": (
        "Zamba2ForCausalLM",
        {**SMALL, "num_hidden_layers": 4, "layer_types": ["mamba", "hybrid", "mamba", "hybrid"], "mamba_d_state": 8,
         "n_mamba_heads": 4, "mamba_headdim": 16, "mamba_ngroups": 1, "hybrid_layer_ids": [1, 3]},
        ["L1.z", "L3.z"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARED)
def test_layers_that_share_weights_are_told_apart(name: str) -> None:
    architecture, more, sites = SHARED[name]
    m = interp.attach(build(architecture, more))
    assert m.check().passed
    assert m.sites("L*.z")[:2] == sites


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    model = build(*REFUSED[name])
    with pytest.raises(ModelError, match=f"has {name}="):
        interp.attach(model).check()


def test_upcast_attention_is_refused_where_it_leaves_the_interface() -> None:
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=160, reorder_and_upcast_attn=True)
    for attn in ("sdpa", "eager"):
        model = transformers.GPT2LMHeadModel._from_config(config, attn_implementation=attn).eval()
        if attn == "sdpa":
            assert interp.attach(model).check().passed
        else:
            with pytest.raises(ModelError, match="reorder_and_upcast_attn"):
                interp.attach(model).check()
    names = {attribute.name for attribute in ATTRIBUTES if attribute.verdict == "refused"}
    assert names == {*REFUSED, "reorder_and_upcast_attn"}
