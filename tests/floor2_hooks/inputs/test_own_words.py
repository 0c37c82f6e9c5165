"""What a user writes first: a text as positions, one edit without a list, everything recorded, other tools' keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError

import interp
from interp.hooks.errors import EditError, InputsError, SiteError

TEXT = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture(scope="module")
def m() -> Any:
    return interp.load("zoo:ioi")


def test_a_text_that_stands_once_is_positions(m: Any) -> None:
    x = m.prepare([TEXT, "Then Mary and Tom went home, and Tom slept"])
    assert torch.equal(x.mask("Mary"), x.mask(x.find("Mary")))
    found = m.run(x, record="L0.z", positions="Mary")["L0.z"]
    assert torch.equal(found, m.run(x, record="L0.z", positions=x.find("Mary"))["L0.z"])


def test_a_text_that_stands_twice_or_in_some_rows_says_how_to_choose(m: Any) -> None:
    with pytest.raises(InputsError, match=r"occurs 2 times in row 0.*occurrence=n"):
        m.prepare(TEXT).mask("John")
    with pytest.raises(InputsError, match="occurs 0 times in row 1"):
        m.prepare([TEXT, "Tom slept"]).mask("Mary")
    with pytest.raises(InputsError, match=r"no role 'Marry'.*any text that occurs once"):
        m.prepare(TEXT).mask("Marry")


def test_a_role_goes_before_a_text(m: Any) -> None:
    x = m.prepare("When Mary and John went to the store, first of all")
    assert torch.equal(x.mask("first"), x.mask([0]))


def test_one_edit_needs_no_list(m: Any) -> None:
    edit = interp.Zero("L1.H0.z")
    expected = m.run(TEXT, edits=[edit])["logits"]
    assert torch.equal(m.run(TEXT, edits=edit)["logits"], expected)
    with m.edited(edit):
        assert torch.equal(m.run(TEXT)["logits"], expected)
    one, several = (m.generate(TEXT, edits=edits, max_new_tokens=3).text for edits in (edit, [edit]))
    assert one == several


@pytest.mark.parametrize("edits", ["L1.H0.z", ["L1.H0.z"], 3, [None], interp.Zero])
def test_what_is_no_edit_is_refused(m: Any, edits: Any) -> None:
    with pytest.raises((EditError, TypeCheckError), match=r"expected edits such as|parameter .?edits"):
        m.run(TEXT, edits=edits)


@pytest.mark.parametrize("name", ["zoo:ioi", "zoo:shapes-lvlm"])
def test_a_star_records_all_but_what_is_large(name: str) -> None:
    m = interp.load(name)
    tape = m.run(m.example(), record="*")
    components = {site.component for site in tape.sites}
    assert {"embed", "q", "k", "v", "z", "resid_pre", "resid_post", "attn_out", "final_norm"} <= components
    assert not components & {"pattern", "scores", "result"}
    for tower in m.anatomy.towers.values():
        mine = [site for site in tape.sites if site.tower in (None, tower.name) and site.component == "z"]
        assert len(mine) == len(tower.layers)
    assert len(m.run(m.example(), record=["*", next(iter(m.sites("L*.H0.pattern")))])) == len(tape) + 1


def test_keys_of_transformer_lens_name_sites(m: Any) -> None:
    tape = m.run(TEXT, record=["L1.pattern", "L1.z", "L1.neurons"])
    assert torch.equal(tape["pattern", 1], tape["L1.pattern"])
    assert torch.equal(tape["z", 1], tape["L1.z"])
    assert torch.equal(tape["post", 1], tape["L1.neurons"])
    with pytest.raises(SiteError, match=r"no key .'zz', layer"):
        _ = tape["zz", 1]


def test_the_last_layer_is_minus_one(m: Any) -> None:
    last = len(m.anatomy.towers[next(iter(m.towers))].layers) - 1
    assert m.sites("L-1.H0.z") == [f"L{last}.H0.z"]
    assert torch.equal(m.run(TEXT, record="L-1.z")["L-1.z"], m.run(TEXT, record=f"L{last}.z")[f"L{last}.z"])
    with pytest.raises(SiteError, match="no layer -9"):
        m.sites("L-9.z")
    for odd in ("L-0.z", "L-1-2.z", "L-.z", "L1,-1.z"):
        with pytest.raises(SiteError):
            m.sites(odd)
