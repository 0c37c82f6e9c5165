"""Every edit against its definition, computed by hand: eager softmax, one head after the other, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import models
import pytest
import torch
from torch import Tensor

import interp
from interp.hooks.edits.edits import AttentionEdit, Edit
from interp.hooks.errors import EditError, InputsError, NotFired, SiteError
from interp.hooks.examples.example import example
from interp.kernels.errors import InterpError
from interp.zoo.families import tiny

PADDINGS = [None, "left", "right"]
Weights = Callable[[Tensor, Tensor], Tensor]


attached = partial(models.attached, dtype=torch.float64)


def made(name: str, *, batch: int = 2, length: int = 6, padding: str | None = None) -> Any:
    m = attached(name)
    return m, m.inputs(example(m.module, batch=batch, length=length, padding=padding))


@pytest.fixture(scope="module")
def llama() -> interp.Model:
    return attached("llama")


def inputs_of(m: interp.Model, padding: str | None = None) -> Any:
    return m.inputs(example(m.module, batch=3, length=7, padding=padding))


class Oracle:
    """Scores and weights of one head of a causal model, from recorded q and k."""

    def __init__(self, m: interp.Model, x: Any, layer: int, head: int, edits: Any = ()) -> None:
        tape = m.run(x, record=[f"L{layer}.q", f"L{layer}.k", f"L{layer}.v", f"L{layer}.z"], edits=edits)
        group = m.anatomy.towers["text"].layer(layer).group
        self.q, self.z = tape[f"L{layer}.q"][:, :, head], tape[f"L{layer}.z"]
        self.k, self.v = (tape[f"L{layer}.{c}"][:, :, head // group] for c in "kv")
        n = self.q.shape[1]
        causal = torch.ones(n, n, dtype=torch.bool).tril()
        self.sees = causal & x.valid[:, None, :]
        self.scores = self.q @ self.k.transpose(1, 2) / self.q.shape[-1] ** 0.5

    def weights(self, scores: Tensor | None = None, sees: Tensor | None = None) -> Tensor:
        scores, sees = self.scores if scores is None else scores, self.sees if sees is None else sees
        hidden = scores.masked_fill(~sees, -torch.inf)
        return torch.softmax(hidden, -1).nan_to_num(0.0)


def test_the_oracle_is_the_model(llama: interp.Model) -> None:
    for padding in PADDINGS:
        x = inputs_of(llama, padding)
        oracle = Oracle(llama, x, 1, 3)
        real = x.valid[..., None]
        torch.testing.assert_close((oracle.weights() @ oracle.v) * real, oracle.z[:, :, 3] * real)


def uniform(o: Oracle) -> Tensor:
    return o.sees.double() / o.sees.sum(-1, keepdim=True).clamp(min=1)


def identity(o: Oracle) -> Tensor:
    return torch.eye(o.sees.shape[-1], dtype=torch.float64) * o.sees


def redistributed(o: Oracle, source: Tensor, target: Tensor, fraction: float) -> Tensor:
    w = o.weights()
    from_, to = w * source[:, None], w * target[:, None]
    share = to / to.sum(-1, keepdim=True)
    new = w - fraction * from_ + fraction * from_.sum(-1, keepdim=True) * share.nan_to_num(0.0)
    return torch.where(to.sum(-1, keepdim=True) > 0, new, w)


def keys_of(x: Any, spec: Any) -> Tensor:
    return x.mask(spec)


ATTENTION: dict[str, tuple[AttentionEdit, Callable[[Oracle, Any], Tensor]]] = {
    "mask": (
        interp.MaskKeys("L1.H3", keys="first"),
        lambda o, x: o.weights(sees=o.sees & ~keys_of(x, "first")[:, None]),
    ),
    "temperature": (interp.edits.Temperature("L1.H3", value=2.5), lambda o, x: o.weights(o.scores / 2.5)),
    "bias": (
        interp.edits.BiasKeys("L1.H3", keys="first", amount=1.5),
        lambda o, x: o.weights(o.scores + 1.5 * keys_of(x, "first")[:, None]),
    ),
    "emphasize": (
        interp.edits.Emphasize("L1.H3", keys="last", amount=0.5),
        lambda o, x: o.weights(o.scores + 0.5 * o.scores.abs() * keys_of(x, "last")[:, None]),
    ),
    "redistribute": (
        interp.edits.Redistribute("L1.H3", source="first", target=[-1, -2], fraction=0.6),
        lambda o, x: redistributed(o, keys_of(x, "first"), keys_of(x, [-1, -2]), 0.6),
    ),
    "blend to identity": (
        interp.Blend("L1.H3", to="identity", amount=0.4),
        lambda o, x: torch.where(o.sees.any(-1, keepdim=True), 0.6 * o.weights() + 0.4 * identity(o), 0),
    ),
    "blend to uniform": (
        interp.Blend("L1.H3", to="uniform", amount=0.4),
        lambda o, x: 0.6 * o.weights() + 0.4 * uniform(o),
    ),
    "uniform": (interp.edits.UniformAttention("L1.H3"), lambda o, x: uniform(o)),
    "pattern times 0.5": (interp.Scale("L1.H3.pattern", 0.5), lambda o, x: 0.5 * o.weights()),
    "pattern set": (interp.Set("L1.H3.pattern", 0.25), lambda o, x: torch.full_like(o.scores, 0.25)),
    "scores zeroed": (interp.Zero("L1.H3.scores"), lambda o, x: o.weights(torch.zeros_like(o.scores))),
    "scores times 3": (interp.Scale("L1.H3.scores", 3.0), lambda o, x: o.weights(3 * o.scores)),
}


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", ATTENTION)
def test_an_attention_edit_is_its_dense_definition(llama: interp.Model, name: str, padding: Any) -> None:
    edit, define = ATTENTION[name]
    x = inputs_of(llama, padding)
    oracle = Oracle(llama, x, 1, 3)
    expected = define(oracle, x)
    tape = llama.run(x, record=["L1.z", "L1.H3.pattern"], edits=[edit])
    real = x.valid[..., None]
    assert not torch.allclose(expected @ oracle.v * real, oracle.z[:, :, 3] * real)
    torch.testing.assert_close(tape["L1.H3.z"][:, :, 0] * real, expected @ oracle.v * real)
    torch.testing.assert_close(tape["L1.H3.pattern"][:, 0] * real, expected * real)
    assert torch.equal(tape["L1.z"][:, :, :3], oracle.z[:, :, :3]), "a head that nobody edited changed"


@pytest.mark.parametrize("name", ["mask", "redistribute", "blend to uniform", "pattern times 0.5", "scores zeroed"])
def test_query_positions_and_rows_bound_an_attention_edit(llama: interp.Model, name: str) -> None:
    edit, define = ATTENTION[name]
    x = inputs_of(llama, "left")
    oracle = Oracle(llama, x, 1, 3)
    bounded = type(edit)(**{**vars(edit), "positions": "last", "rows": (0, 2)})
    touched = x.mask("last") & torch.tensor([True, False, True])[:, None]
    tape = llama.run(x, record=["L1.z", "L1.H3.pattern"], edits=[bounded])
    expected = torch.where(touched[..., None], define(oracle, x) @ oracle.v, oracle.z[:, :, 3])
    torch.testing.assert_close(tape["L1.H3.z"][:, :, 0], expected)
    weights = torch.where(touched[..., None], define(oracle, x), oracle.weights())
    torch.testing.assert_close(tape["L1.H3.pattern"][:, 0] * x.valid[..., None], weights * x.valid[..., None])


@pytest.mark.parametrize("name", ATTENTION)
def test_a_recorded_row_of_the_pattern_is_that_of_the_whole_under_an_edit(llama: interp.Model, name: str) -> None:
    """Positions, keys and single heads of a pattern are cut out of what the edits left, not out of the model's own."""
    x = inputs_of(llama)
    edits = [ATTENTION[name][0]]
    whole = llama.run(x, record="L1.pattern", edits=edits)["L1.pattern"]
    for positions, rows in (([2, 5], [[2, 5]] * 3), ([[1], [4], [6]], [[1], [4], [6]])):
        part = llama.run(x, record="L1.H1,3.pattern", edits=edits, positions=positions, keys=[0, 3])["L1.H1,3.pattern"]
        expected = torch.stack([whole[b][[1, 3]][:, r] for b, r in enumerate(rows)])[..., [0, 3]]
        torch.testing.assert_close(part, expected)


def test_edits_of_one_head_act_in_stages_whatever_their_order(llama: interp.Model) -> None:
    x = inputs_of(llama)
    edits = [interp.edits.Temperature("L1.H3", value=2.0), interp.edits.BiasKeys("L1.H3", keys="first", amount=1.0)]
    oracle = Oracle(llama, x, 1, 3)
    expected = oracle.weights(oracle.scores / 2 + 1.0 * x.mask("first")[:, None]) @ oracle.v
    for order in (edits, edits[::-1]):
        torch.testing.assert_close(llama.run(x, record="L1.z", edits=order)["L1.H3.z"][:, :, 0], expected)


def test_edits_under_a_window_softcap_or_sink_keep_them() -> None:
    for family, layer in (("gemma2", 0), ("gpt_oss", 0), ("mistral", 1)):
        m = interp.attach(tiny(family))
        x = m.inputs(example(m.module, batch=2, length=9))
        none = interp.edits.Temperature(f"L{layer}.H*", value=1.0)
        tape, edited = (m.run(x, record=f"L{layer}.z", edits=e) for e in ([], [none]))
        torch.testing.assert_close(edited[f"L{layer}.z"], tape[f"L{layer}.z"], rtol=1e-5, atol=1e-5)


VALUES: dict[str, tuple[Callable[[str], Edit], Callable[[Tensor, Tensor], Tensor]]] = {
    "set": (lambda s: interp.Set(s, 0.3), lambda x, valid: torch.full_like(x, 0.3)),
    "scale": (lambda s: interp.Scale(s, -2.0), lambda x, valid: -2 * x),
    "zero": (lambda s: interp.Zero(s), lambda x, valid: 0 * x),
    "mean": (lambda s: interp.Mean(s), lambda x, valid: x[valid].mean(0).expand_as(x)),
    "mean given": (lambda s: interp.Mean(s, 0.7), lambda x, valid: torch.full_like(x, 0.7)),
    "add": (lambda s: interp.Add(s, 0.5, amount=3.0), lambda x, valid: x + 1.5),
    "project": (
        lambda s: interp.edits.Project(s, torch.eye(64, dtype=torch.float64)[: 32 if "resid" in s else 8, :2], to=0.5),
        lambda x, valid: torch.cat([torch.full_like(x[..., :2], 0.5), x[..., 2:]], -1),
    ),
}
PLACES = ["L1.z", "L1.H2.z", "L1.H3,0.q", "L0.K1.k", "L1.v", "L1.resid_pre", "L0.resid_mid", "L1.resid_post"]


@pytest.mark.parametrize("site", PLACES)
@pytest.mark.parametrize("name", VALUES)
def test_a_value_edit_is_its_definition(llama: interp.Model, name: str, site: str) -> None:
    make, define = VALUES[name]
    x = inputs_of(llama, "left" if PLACES.index(site) % 2 else "right")
    before, after = (llama.run(x, record=site, edits=e)[site] for e in ([], [make(site)]))
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if name == "project" else {}
    torch.testing.assert_close(after, define(before, x.valid), **tolerance)


@pytest.mark.parametrize(
    "component", ["attn_in", "attn_out", "attn_write", "mlp_in", "mlp_out", "mlp_write", "neurons"]
)
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "opt", "t5"])
def test_module_sites_are_edited_where_the_model_goes_on(family: str, component: str) -> None:
    """The edit is seen when the site is recorded again, and by the residual after it."""
    m, x = made(family, padding="right")
    tower = "" if len(m.towers) == 1 else "encoder."
    site, later = f"{tower}L0.{component}", f"{tower}L0.resid_post"
    before, after = (m.run(x, record=[site, later], edits=e) for e in ([], [interp.Add(site, 0.5)]))
    torch.testing.assert_close(after[site], 0.5 + before[site], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(after[later], before[later])


def test_zeroing_a_write_is_taking_it_out_of_the_sum(llama: interp.Model) -> None:
    x = inputs_of(llama)
    for component, before, after in (
        ("attn_write", "L1.resid_pre", "L1.resid_mid"),
        ("mlp_write", "L1.resid_mid", "L1.resid_post"),
    ):
        tape = llama.run(x, record=[before, after], edits=[interp.Zero(f"L1.{component}")])
        torch.testing.assert_close(tape[after], tape[before])


def test_scaling_a_result_scales_what_a_head_writes(llama: interp.Model) -> None:
    x = inputs_of(llama)
    tape = llama.run(x, record=["L1.result", "L1.attn_out"])
    edited = llama.run(x, record="L1.attn_out", edits=[interp.Scale("L1.H2.result", 3.0)])
    torch.testing.assert_close(edited["L1.attn_out"], tape["L1.attn_out"] + 2 * tape["L1.H2.result"][:, :, 0])


def test_values_for_several_heads_go_to_the_heads_in_the_order_written(llama: interp.Model) -> None:
    x = inputs_of(llama)
    value = torch.tensor([3.0, 1.0], dtype=torch.float64)[:, None].expand(2, 8)
    z = llama.run(x, record="L0.z", edits=[interp.Set("L0.H3,1.z", value)])["L0.z"]
    assert bool((z[:, :, 3] == 3).all())
    assert bool((z[:, :, 1] == 1).all())


def test_positions_rows_and_heads_bound_a_value_edit(llama: interp.Model) -> None:
    x = inputs_of(llama, "left")
    before = llama.run(x, record="L1.z")["L1.z"]
    edit = interp.Set("L1.H1,2.z", 9.0, positions="last", rows=(1,))
    after = llama.run(x, record="L1.z", edits=[edit])["L1.z"]
    expected = before.clone()
    expected[1, x.mask("last")[1], 1:3] = 9.0
    assert torch.equal(after, expected)


def test_positions_of_k_and_v_are_keys(llama: interp.Model) -> None:
    x = inputs_of(llama)
    before, after = (
        llama.run(x, record="L1.v", edits=e)["L1.v"] for e in ([], [interp.Zero("L1.K0.v", positions=[2])])
    )
    expected = before.clone()
    expected[:, 2, 0] = 0
    assert torch.equal(after, expected)


def test_kv_edits_are_per_kv_head_and_say_so(llama: interp.Model) -> None:
    x = inputs_of(llama)
    base, edited = (llama.run(x, record="L1.z", edits=e)["L1.z"] for e in ([], [interp.Scale("L1.K1.v", 2.0)]))
    torch.testing.assert_close(edited[:, :, 2:], 2 * base[:, :, 2:])
    assert torch.equal(edited[:, :, :2], base[:, :, :2])
    with pytest.raises(EditError, match=r"kv head 1, and H2, H3 all read it.*L1\.K1\.v.*expand=True"):
        llama.run(x, edits=[interp.Scale("L1.H2.v", 2.0)])


@pytest.mark.parametrize("component", ["k", "v"])
def test_kv_heads_copied_per_query_head(llama: interp.Model, component: str) -> None:
    """`expand=True` changes what one query head reads, as if k and v were repeated; the others of its group stay."""
    x = inputs_of(llama, "right")
    o = Oracle(llama, x, 1, 2)
    edit = interp.Scale(f"L1.H2.{component}", 2.0, expand=True, positions=[0, 1])
    tape = llama.run(x, record=["L1.z", f"L1.{component}", "L1.H1.pattern"], edits=[edit])
    factor = torch.ones(x.length, 1, dtype=torch.float64)
    factor[:2] = 2
    k, v = (o.k * factor, o.v) if component == "k" else (o.k, o.v * factor)
    expected = o.weights(o.q @ k.transpose(1, 2) / o.q.shape[-1] ** 0.5) @ v
    torch.testing.assert_close(tape["L1.H2.z"][:, :, 0], expected)
    assert torch.equal(tape["L1.z"][:, :, [0, 1, 3]], o.z[:, :, [0, 1, 3]])


def test_a_query_heads_k_is_read_as_its_kv_heads(llama: interp.Model) -> None:
    tape = llama.run(inputs_of(llama), record=["L1.k", "L1.H0,1,2.k"])
    assert torch.equal(tape["L1.H0,1,2.k"], tape["L1.k"])
    assert torch.equal(tape["L1.H3.k"], tape["L1.K1.k"])


def test_edits_compare_by_content_print_and_apply_again(llama: interp.Model) -> None:
    vector = torch.arange(8.0, dtype=torch.float64)
    one, two = (interp.Add("L1.z", vector.clone(), positions=[1], phase="prefill") for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    assert one != interp.Add("L1.z", vector + 1, positions=[1], phase="prefill")
    assert one != interp.Add("L1.z", vector, positions=[2], phase="prefill")
    assert repr(one) == "Add('L1.z', positions=[1], phase='prefill', vector=tensor[8])"
    assert repr(interp.Zero("L1.H0.z")) == "Scale('L1.H0.z', factor=0.0)"
    assert eval(repr(interp.MaskKeys("L1.H0", keys="first")), vars(interp) | {"MaskKeys": interp.MaskKeys}) == (  # noqa: S307
        interp.MaskKeys("L1.H0", keys="first")
    )
    x = inputs_of(llama)
    first, second = (llama.run(x, record="L1.z", edits=[one])["L1.z"] for _ in range(2))
    assert torch.equal(first, second)


def test_the_same_edit_twice_acts_twice(llama: interp.Model) -> None:
    x, edit = inputs_of(llama), interp.Scale("L1.z", 2.0)
    base = llama.run(x, record="L1.z")["L1.z"]
    assert torch.equal(llama.run(x, record="L1.z", edits=[edit, edit])["L1.z"], 4 * base)


NEVER: Mapping[str, tuple[Edit, type[InterpError], str]] = {
    "a layer beyond": (interp.Zero("L9.z"), SiteError, "no layer 9"),
    "a head beyond": (interp.Zero("L0.H7.z"), SiteError, "no head 7"),
    "a kv head beyond": (interp.Zero("L0.K3.k"), SiteError, "no head 3"),
    "a later phase": (interp.Zero("L0.z", phase="decode"), NotFired, "never fired.*phase='decode'"),
    "a later step": (interp.Zero("L0.z", step=3), NotFired, "never fired.*step=3"),
    "no row": (interp.Zero("L0.z", rows=()), NotFired, "never fired"),
    "an attention edit of no row": (interp.edits.Temperature("L0", value=2.0, rows=()), NotFired, "never fired"),
    "a row beyond": (interp.Zero("L0.z", rows=(5,)), EditError, "no row 5 in a batch of 3"),
    "a column beyond": (interp.Zero("L0.z", positions=[50]), InputsError, "out of range"),
    "padding": (interp.Zero("L0.z", positions=[0]), InputsError, "is padding in row"),
    "a role that is not there": (interp.MaskKeys("L0", keys="image"), InputsError, "select nothing"),
    "no component": (interp.Zero("L0.H1"), EditError, "name the component"),
    "attention at a value": (interp.edits.Temperature("L0.z", value=2.0), EditError, "has no component"),
    "what a head reads": (interp.Zero("L0.H0.q_in"), EditError, "edit 'resid_pre' or 'attn_in'"),
    "a shape that does not fit": (interp.Set("L0.z", torch.zeros(5)), EditError, "does not broadcast"),
    "a basis that does not fit": (interp.edits.Project("L0.z", torch.zeros(5)), EditError, "5 rows, .* 8 dimensions"),
    "a mean of a pattern": (interp.Mean("L0.pattern"), EditError, "have no mean"),
    "overlapping sets": (
        interp.edits.Redistribute("L0", source="all", target="first"),
        InterpError,
        "disjoint",
    ),
}


@pytest.mark.parametrize("name", NEVER)
def test_an_edit_that_cannot_do_what_it_says_raises(llama: interp.Model, name: str) -> None:
    edit, error, says = NEVER[name]
    x = inputs_of(llama, "left")
    with pytest.raises(error, match=says):
        llama.run(x, edits=[edit])
    assert not llama.handles()


def test_an_edit_needs_its_value() -> None:
    for make in (interp.Set, interp.Add, interp.edits.Project):
        with pytest.raises(EditError, match="needs a"):
            make("L0.z")


def test_an_edit_of_a_layer_that_was_skipped_raises() -> None:
    from interp.hooks.run.session import Session

    m, x = made("llama")
    m.ready()
    session = Session(m.module, m.anatomy, edits=[interp.Zero("L1.z")], inputs=x)
    with session, torch.no_grad():
        m.module.model.embed_tokens(x.kwargs["input_ids"])
    with pytest.raises(NotFired, match="L1"):
        session.check_fired()


def test_a_pattern_edit_that_is_discarded() -> None:
    """Outside the interface a pattern cannot be edited; it is refused, never taken and forgotten."""
    for family in ("gptj", "bloom"):
        m, x = made(family)
        for edit in (interp.Zero("L0.H0.pattern"), interp.edits.Temperature("L0.H0", value=2.0)):
            with pytest.raises(SiteError, match="gives no recipe"):
                m.run(x, edits=[edit])
        with pytest.raises(SiteError, match="gives no recipe"), m.edited([interp.MaskKeys("L0.H0", keys="first")]):
            pass


def test_a_pattern_edit_that_would_be_discarded_beside_an_edit_of_the_scores(llama: interp.Model) -> None:
    edits = [interp.Scale("L0.H1.scores", 0.5), interp.edits.Redistribute("L0.H1", source="first", target="last")]
    with pytest.raises(EditError, match="cannot be edited at one head in one run"):
        llama.run(inputs_of(llama), edits=edits)


def test_sums_that_include_padding(llama: interp.Model) -> None:
    """A mean over positions is that of the real ones: the same with padding on either side and without."""
    ids = example(llama.module, batch=1, length=5)["input_ids"]
    found: list[Tensor] = []
    for before, after in ((0, 0), (3, 0), (0, 3)):
        padded = torch.nn.functional.pad(ids, (before, after))
        mask = torch.nn.functional.pad(torch.ones_like(ids), (before, after))
        x = llama.inputs({"input_ids": padded, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(0)})
        sites = ("L1.z", "L1.k", "L1.mlp_out")
        found += [llama.run(x, record=s, edits=[interp.Mean(s)])[s][0, before] for s in sites]
    for offset in range(3):
        torch.testing.assert_close(found[offset], found[offset + 3])
        torch.testing.assert_close(found[offset], found[offset + 6])


def test_the_mean_of_cached_keys_leaves_out_padding() -> None:
    m, x = made("llama", padding="left")
    m.ready()
    seen: list[Tensor] = []
    hook = m.module.model.layers[1].self_attn.register_forward_hook(lambda mod, args, out: seen.append(out[0]))
    m.generate(x, edits=[interp.Mean("L1.v")], max_new_tokens=3)
    hook.remove()
    expected = m.run(x, record="L1.v")["L1.v"][x.valid].mean(0)
    out = m.module.model.layers[1].self_attn.o_proj.weight
    flat = expected.repeat_interleave(2, 0).flatten() @ out.T
    torch.testing.assert_close(seen[0][0, -1], flat)


@pytest.mark.parametrize("family", ["whisper", "vit", "qwen2_5_vl", "plain", "bloom"])
def test_edits_work_in_every_kind_of_model(family: str) -> None:
    m, x = made(family)
    for name, tower in m.towers.items():
        prefix = "" if len(m.towers) == 1 else f"{name}."
        site = f"{prefix}L{tower.layers[0].index}.H1.z"
        tape = m.run(x, record=site, edits=[interp.Set(site, 0.5)])
        assert bool((tape[site] == 0.5).all())


def test_key_sets_in_cross_attention_are_the_encoders() -> None:
    m, x = made("bart", batch=1, length=7)
    weights = m.run(x, record="cross.L0.pattern", edits=[interp.MaskKeys("cross.L0.H1", keys=[6])])["cross.L0.pattern"]
    assert bool((weights[:, 1, :, 6] == 0).all())
    assert bool((weights[:, 0, :, 6] > 0).all())
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_an_edit_reaches_the_hidden_states_that_transformers_keeps() -> None:
    """LLaVA's connector reads a hidden state that transformers kept by a hook of its own, older than any of ours."""
    m, x = made("llava")
    config = m.module.config
    layer = config.vision_config.num_hidden_layers + config.vision_feature_layer
    patches = m.run(x, record="connector.out")["connector.out"]
    nothing = m.module.model.multi_modal_projector(patches.new_zeros(1, 1, config.vision_config.hidden_size))
    edited = m.run(x, edits=[interp.Zero(f"vision.L{layer}.resid_post")])["logits"]
    as_if = m.run(x, edits=[interp.Set("connector.out", nothing.detach().expand_as(patches))])["logits"]
    torch.testing.assert_close(edited, as_if, atol=1e-4, rtol=1e-4)


def test_key_sets_where_keys_are_not_the_towers_positions_are_refused() -> None:
    """Mllama's crossing layers lie in the text tower and read the image; Qwen's image tower attends image by image."""
    mllama, x = made("mllama")
    with pytest.raises(InterpError, match=r"vision|positions"):
        mllama.run(x, edits=[interp.MaskKeys("text.L1.H0", keys="first")])
    qwen, x = made("qwen2_vl")
    with pytest.raises(InterpError, match="images run one by one"):
        qwen.run(x, edits=[interp.MaskKeys("vision.L0.H0", keys=[0])])
    swin, x = made("swin")
    with pytest.raises(InterpError):
        swin.run(x, edits=[interp.Zero("L0.H0.z", positions=[0])])
    blip, x = made("blip2")
    with pytest.raises(InterpError, match="qformer"):
        blip.run(x, edits=[interp.Zero("cross.L0.H0.z", positions="last")])


def test_edits_of_the_logits(llama: interp.Model) -> None:
    x = inputs_of(llama, "left")
    tape = llama.run(x, edits=[interp.Set("logits", 1.0, positions="last")])
    assert bool((tape["logits"][x.mask("last")] == 1).all())
    assert not bool((tape["logits"][:, :-1] == 1).any())
