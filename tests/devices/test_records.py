"""Every method that has a record, and every choice of one, on pretend accelerators: the CPU's numbers, kept on the CPU.

A method is tried as its record says, on a decoder and on a vision-language model over two devices, or where neither is
fit for it on an encoder-decoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from models import trial
from placed import NEAR, Place, away, check_same, numbers
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from interp.records import Kind, Method, Trial, Variant, every, variants

COARSER = {
    "interp.directions.das": (1e-2, "Adam divides every gradient by its own size, so that rounding steps as far as"),
    "interp.forgetting.dampen": (2e-6, "quotients of squared slopes: rounding counts four times"),
    "interp.sink.sink_knockout": (2e-6, "a change of a loss of 16, twice as large as logits are here"),
    "interp.report": (1e-5, "shares of a metric's change, and bounds between draws of them"),
}
"""Where rounding is magnified, how far it may go, and by what."""
LONG = {("interp.report", "lvlm"): "a report on pictures stands for it"}
Case = tuple[Method, Variant | None, Kind]


def cases(kind: Kind, *, choices: bool) -> Iterator[Case]:
    for method in every():
        found = [None, *variants(method.name).values()] if choices else [None]
        for variant in found:
            unfit = {**method.unfit, **(variant.unfit if variant else {})}
            if kind not in unfit and (method.name, kind) not in LONG:
                yield method, variant, kind


def named(found: list[Case]) -> list[object]:
    return [
        pytest.param(m, v, k, id=f"{m.name.removeprefix('interp.')}{f'-{v.name}' if v else ''}-{k}")
        for m, v, k in found
    ]


PICTURES = [(method, None, kind) for method, _, kind in cases("vit", choices=False) if method.name == "interp.report"]
TRANSLATED = [
    (method, None, kind)
    for method, _, kind in cases("encoder-decoder", choices=False)
    if {"decoder", "lvlm"} <= set(method.unfit)
]
"""What nothing else can be asked of."""
ALL = named([*cases("decoder", choices=True), *cases("lvlm", choices=False), *PICTURES, *TRANSLATED])
SOME = named([*cases("decoder", choices=False)])


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> object:
    @cache
    def made(kind: Kind, place: Place) -> Trial:
        return trial(kind, tmp_path_factory.mktemp(kind), place.model)

    return made


def answer(method: Method, variant: Variant | None, on: Trial) -> dict[str, Tensor]:
    how = {} if variant is None else {variant.argument: variant.name, **variant.example}
    with sdpa_kernel(SDPBackend.MATH):
        torch.manual_seed(0)
        return dict(numbers(method.example(on, **how)))


def check(case: Case, trials: object, where: str, dtype: torch.dtype) -> None:
    assert callable(trials)
    method, variant, kind = case
    here, there = (answer(method, variant, trials(kind, Place(one, dtype))) for one in ("cpu", where))
    near = max(NEAR[dtype], COARSER.get(method.name, (0.0, ""))[0])
    check_same(here, there, near)
    assert method.values is None or not away(there)


@pytest.mark.parametrize(("method", "variant", "kind"), ALL)
@pytest.mark.filterwarnings("ignore:Rules:UserWarning")  # one that changes nothing on these weights says so
def test_on_two_devices_the_numbers_are_the_cpus(
    method: Method, variant: Variant | None, kind: Kind, trials: object
) -> None:
    check((method, variant, kind), trials, "two", torch.float32)


@pytest.mark.parametrize(("method", "variant", "kind"), SOME)
@pytest.mark.filterwarnings("ignore:Rules:UserWarning")
def test_in_bfloat16_they_are_the_cpus_but_for_its_rounding(
    method: Method, variant: Variant | None, kind: Kind, trials: object
) -> None:
    check((method, variant, kind), trials, "one", torch.bfloat16)
