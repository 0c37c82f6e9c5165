"""The grammar of sites, and what sites mean in models of different make."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import mpt

import interp
from interp.hooks.errors import SiteError
from interp.hooks.sites import COMPONENTS, HEAD, KV, LAYER, TRANSFORMER_LENS, Site, numbers, parse
from interp.zoo.families import tiny

NUMBERS = st.lists(st.integers(0, 300), min_size=1, max_size=4, unique=True).map(tuple)
TOWERS = st.sampled_from([None, "text", "vision", "encoder", "decoder", "cross", "qformer", "vision2"])


@pytest.fixture(scope="module")
def llama() -> interp.Model:
    return interp.attach(tiny("llama"))


def made(tower: str | None, layer: int, component: str, heads: tuple[int, ...] | None, by_query: bool) -> Site:
    if component not in HEAD | KV | LAYER:
        return Site(tower, None, component)
    heads = heads if component in HEAD | KV else None
    return Site(tower, layer, component, heads, by_query and heads is not None and component in KV)


PARTS = (TOWERS, st.integers(0, 300), st.sampled_from(sorted(COMPONENTS)), st.none() | NUMBERS, st.booleans())


@given(*PARTS)
def test_a_printed_site_is_read_as_itself(
    tower: str | None, layer: int, component: str, heads: tuple[int, ...] | None, by_query: bool
) -> None:
    site = made(tower, layer, component, heads, by_query)
    read = parse(str(site))
    heads = None if read.heads is None else numbers(read.heads, range(301), what="head", text=read.text)
    number = None if read.layers is None else int(read.layers)
    assert Site(read.tower, number, read.component, heads, read.kind == "H" and read.component in KV) == site


@given(st.text(max_size=30))
def test_no_text_does_more_than_parse_or_raise(text: str) -> None:
    try:
        found, said = parse(text).component, repr(text)
    except SiteError as error:
        found, said = "z", str(error)
    assert found in COMPONENTS
    assert repr(text) in said


@pytest.mark.parametrize(
    ("spelled", "printed"),
    [
        ("L1.H3.z", "L1.H3.z"),
        ("L1H3z", "L1.H3.z"),
        ("L1H3", "L1.H3"),
        ("1.3", "L1.H3"),
        ("a1.h3", "L1.H3"),
        ("a1.3.z", "L1.H3.z"),
        ("1.3.q", "L1.H3.q"),
        (" L1.z ", "L1.z"),
        ("blocks.1.attn.hook_z", "L1.z"),
        ("blocks.1.attn.hook_k", "L1.k"),
        ("blocks.0.hook_resid_pre", "L0.resid_pre"),
        ("blocks.0.mlp.hook_post", "L0.neurons"),
        ("hook_embed", "embed"),
        ("ln_final.hook_normalized", "final_norm"),
        ("unembed.hook_out", "logits"),
        ("L1.H0-2.pattern", "L1.H0,1,2.pattern"),
        ("L1.H3,1.z", "L1.H3,1.z"),
        ("L1.H1,1.z", "L1.H1.z"),
        ("L1.K1.v", "L1.K1.v"),
        ("L1.H3.v", "L1.H3.v"),
        ("L1.H*.z", "L1.z"),
        ("text.L1.z", "L1.z"),
        ("text.logits", "logits"),
    ],
)
def test_spellings(llama: interp.Model, spelled: str, printed: str) -> None:
    assert llama.sites(spelled) == [printed]


@pytest.mark.parametrize("theirs", TRANSFORMER_LENS)
def test_every_transformer_lens_name_is_a_component(theirs: str) -> None:
    spelled = f"blocks.4.{theirs}" if theirs != "hook_embed" else theirs
    assert parse(spelled).component == TRANSFORMER_LENS[theirs]


def test_stacks_of_transformer_lens_are_towers() -> None:
    assert parse("decoder_blocks.2.attn.hook_z").tower == "decoder"


def test_ranges_lists_and_stars_name_layers(llama: interp.Model) -> None:
    assert llama.sites("L*.z") == llama.sites("L0-1.z") == llama.sites("L0,1.z") == ["L0.z", "L1.z"]
    assert llama.sites("L1,0.z") == ["L1.z", "L0.z"]


@pytest.mark.parametrize(
    ("spelled", "says"),
    [
        ("", "cannot read"),
        ("L1..z", "cannot read"),
        ("L-9.z", "no layer -9"),
        ("L--1.z", "cannot read"),
        ("L1.H.z", "no component|cannot read"),
        ("l1.z", "names no layer"),
        ("vison.L0.z", "no tower 'vison' .* this model has text"),
        ("txt.L0.z", "Did you mean 'text'"),
        ("L0.zz", "no component 'zz'.*Did you mean 'z'"),
        ("L0.resid_prev", "Did you mean 'resid_pre'"),
        ("L7.z", "no layer 7 .* layers 0-1"),
        ("L0-9.z", "no layer 9"),
        ("L0-99999999999.z", "no layer 99999999999"),
        ("L3-1.z", "smaller number first"),
        ("L0.H4.z", "no head 4 .* heads 0-3"),
        ("L0.K2.k", "no head 2 .* heads 0-1"),
        ("L0.K1.z", "write H instead of K"),
        ("L0.H1.resid_pre", "has no heads"),
        ("z", "names no layer"),
        ("L1.logits", "whole tower"),
        ("connector.out", "none here"),
        ("blocks.0.attn.hook_zz", "no TransformerLens name"),
        ("text.", "names a tower|cannot read|no component"),
    ],
)
def test_what_is_wrong_with_a_site(llama: interp.Model, spelled: str, says: str) -> None:
    with pytest.raises(SiteError, match=says):
        llama.sites(spelled)


def test_a_tower_has_to_be_named_where_it_would_be_a_guess() -> None:
    siglip = interp.attach(tiny("siglip"))
    with pytest.raises(SiteError, match="names no tower, and this model has"):
        siglip.sites("L0.z")
    assert siglip.sites("vision.L0.z") == ["vision.L0.z"]
    with pytest.raises(SiteError, match="Did you mean 'vision'"):
        siglip.sites("vison.L0.z")


def test_a_language_models_tower_is_meant_where_none_is_named() -> None:
    llava = interp.attach(tiny("llava"))
    assert llava.sites("L0.z") == ["text.L0.z"]
    assert llava.sites("vision.L*.H2.z")[-1].startswith("vision.L")
    assert llava.sites("connector.out") == ["connector.out"]


def test_cross_attention_is_a_tower_of_its_own() -> None:
    bart = interp.attach(tiny("bart"))
    assert set(bart.towers) == {"encoder", "decoder", "cross"}
    assert bart.sites("cross.L1.H0.z") == ["cross.L1.H0.z"]
    with pytest.raises(SiteError, match="no head 3"):
        bart.sites("decoder.L0.H3.z")
    with pytest.raises(SiteError, match="belongs to the tower 'decoder'"):
        bart.sites("cross.L0.resid_pre")
    assert bart.sites("decoder.L0.resid_mid2") == ["decoder.L0.resid_mid2"]


def test_what_a_block_lacks_is_said_and_wildcards_pass_over_it() -> None:
    neox = interp.attach(tiny("gpt_neox"))
    with pytest.raises(SiteError, match="in parallel"):
        neox.sites("L0.resid_mid")
    with pytest.raises(SiteError, match="gives no recipe"):
        mpt().sites("L0.H0.pattern")
    with pytest.raises(SiteError, match="does not say where it is"):
        mpt().sites("L0.q")


def test_towers_whose_layers_differ_have_each_layers_own_heads() -> None:
    swin = interp.attach(tiny("swin"))
    assert swin.sites("L2.H2.z") == ["L2.H2.z"]
    with pytest.raises(SiteError, match="no head 2"):
        swin.sites("L0.H2.z")
    with pytest.raises(SiteError, match="no head 2"):
        swin.sites("L*.H2.z")


def test_sites_are_hashable_ordered_and_equal_by_content() -> None:
    assert Site(None, 1, "z") == Site(None, 1, "z")
    assert len({Site(None, 1, "z"), Site(None, 1, "z"), Site(None, 1, "z", (0,))}) == 2
    assert Site("text", 1, "z", (0,)).whole == Site("text", 1, "z")
