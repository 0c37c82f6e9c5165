"""What interp can do with each model type: `interp doctor --all`.

Each type is built as a tiny random model (`interp/zoo/every`). Then it is checked in this order: its plain forward
runs; its heads are found; the self-checks pass; it can be recorded, edited and differentiated; a sweep of
`interp.patch` gives the numbers of a loop over plain hooks, which does not use the hook layer. The verdict names the
first check that fails:

pass       every check passes
partly     its heads can be recorded and edited, and something else is refused; the reason is given
refused    `attach` refuses it and gives the reason
no heads   it has no attention heads, and `attach` says so
fails      one of its self-checks fails
wrong      a number of the sweep is not the number of the loop
crash      an error that is not a refusal of interp
not built  the builder fails, or the type's plain forward on made-up inputs: nothing is known about the type
`interp doctor --denoisers` makes the same checks with each class of diffusers that denoises, and checks that its tokens
are where their roles say.
Cost: half a second a type. Limits: random weights, made-up inputs, a sample of heads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from interp.hooks.denoisers.calls import denoises
from interp.hooks.errors import ModelError, UnknownPositions
from interp.hooks.examples.example import example
from interp.hooks.stand.output import logits_of
from interp.hooks.survey.answers import answer, same
from interp.kernels.errors import InterpError
from interp.metrics.places import At
from interp.model import Model, attach
from interp.patching.patch import patch
from interp.zoo.denoisers import build as denoisers
from interp.zoo.denoisers import kinds, misplaced
from interp.zoo.every import build, types

Verdict = Literal["pass", "partly", "refused", "no heads", "fails", "wrong", "crash", "not built"]
BREAKS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NotImplementedError, OSError,
    RuntimeError, StrictDataclassError, TypeError, ValueError,
)  # fmt: skip
"""What other people's code raises on inputs it was not made for; where ours does, that is a crash."""
JUDGED: tuple[Verdict, ...] = ("pass", "partly", "refused", "fails", "wrong", "crash")
"""The verdicts of types that have heads and could be built."""
RANDOM = (
    "two plain runs on the same inputs differ: its forward draws random numbers, so no check can compare with it. If"
    " the config has a setting for that, turn it off."
)
HEADS = 4
"""Heads of a type whose sweep is compared with the loop."""


@dataclass
class TypeRow:
    """What was found of one model type."""

    model_type: str
    verdict: Verdict
    why: str = ""
    cls: str = ""
    heads: str = ""
    standpoints: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        """The row as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        where = f" at {', '.join(self.standpoints)}" if self.standpoints else ""
        return f"{self.model_type:<28} {self.verdict:<9} {self.cls}{where}" + (f": {self.why}" if self.why else "")


def examine(model_type: str, build: Callable[[str], nn.Module] = build) -> TypeRow:
    """The verdict of one type."""
    try:
        module = build(model_type)
    except (InterpError, *BREAKS) as why:
        return TypeRow(model_type, "not built", _line(why))
    row = TypeRow(model_type, "pass", cls=type(module).__name__)
    try:
        _examined(module, row)
    except BREAKS as why:
        row.verdict, row.why = "crash", _line(why)
    return row


def _examined(module: nn.Module, row: TypeRow) -> None:
    try:
        kwargs = example(module)
    except InterpError as why:
        row.verdict, row.why = "refused", _line(why)
        return
    try:
        with torch.no_grad():
            once, again = answer(module(**kwargs)), answer(module(**kwargs))
    except BREAKS as why:
        row.verdict, row.why = "not built", f"its plain forward: {_line(why)}"
        return
    if not same(once, again):
        row.verdict, row.why = "refused", RANDOM
        return
    model = attach(module, example=kwargs)
    for verdict, step in STEPS:
        try:
            step(model, row)
        except InterpError as why:
            row.verdict, row.why = verdict, _line(why)
            if verdict == "refused" and "no attention heads" in str(why):
                row.verdict = "no heads"
            return


def _found(model: Model, row: TypeRow) -> None:
    towers = model.anatomy.towers.values()
    row.heads = "; ".join(map(str, towers))
    row.standpoints = sorted({layer.standpoint for tower in towers for layer in tower.layers})


def _checked(model: Model, row: TypeRow) -> None:
    model.check().raise_failed()


def _able(model: Model, row: TypeRow) -> None:
    for one in model.capabilities().rows:
        if one.answer == "no":
            raise ModelError(f"{one.what}: {one.note}")


def _swept(model: Model, row: TypeRow) -> None:
    """A few heads of each tower, patched from another example, by us and by hand."""
    base, source = dict(model.example()), example(model.module, seed=1)
    with torch.no_grad():
        output = model.module(**model.called_with(base))
    metric = _numbers if logits_of(output) is not None else At(_last(model), _numbers)
    for name, tower in model.anatomy.towers.items():
        start = "" if len(model.towers) == 1 else f"{name}."
        layer = tower.layers[len(tower.layers) // 2]
        if layer.out is None:
            continue
        sites = [f"{start}L{layer.index}.H{head}.z" for head in range(min(HEADS, layer.heads))]
        found = patch(model, base=base, source=source, metric=metric, sites=sites)
        by_hand = [_by_hand(model, layer, head, base, source) for head in range(len(sites))]
        expected = torch.stack(by_hand) - _score(model, base)
        off = float((found.values.double() - expected).abs().max())
        if off > 1e-4 * max(1.0, float(expected.abs().max())):
            row.verdict, row.why = "wrong", f"{sites[0]} and others: a sweep is {off:.2g} off a loop"


def _placed(model: Model, row: TypeRow) -> None:
    """Tokens of a denoiser are where their roles say."""
    if not denoises(model.module):
        return
    try:
        wrong = misplaced(model)
    except UnknownPositions:
        row.verdict, row.why = (
            "partly",
            "interp does not know the order of its tokens: they have positions and no roles",
        )
    else:
        if wrong is not None:
            row.verdict, row.why = "wrong", wrong


def _numbers(logits: Tensor, inputs: Any) -> Tensor:
    """One number a row: two columns of the last position."""
    last = logits.flatten(1, -2)[:, -1] if logits.ndim > 2 else logits
    return last[:, 0] - 0.5 * last[:, -1]


def _last(model: Model) -> str:
    """What a model without logits is asked for: what the last block of its largest tower gives."""
    name, tower = max(model.anatomy.towers.items(), key=lambda item: len(item[1].layers))
    return f"{name}.L{tower.layers[-1].index}.resid_post"


def _score(model: Model, kwargs: Mapping[str, Any]) -> Tensor:
    """The same of a plain run, read by torch's own hooks."""
    seen: list[Tensor] = []
    block = model.module.get_submodule(max(model.towers.values(), key=lambda one: len(one.layers)).layers[-1].block)
    handle = block.register_forward_hook(lambda _, __, made: seen.append(made if torch.is_tensor(made) else made[0]))
    try:
        with torch.no_grad():
            output = model.module(**model.called_with(kwargs))
    finally:
        handle.remove()
    logits = logits_of(output)
    if logits is None:
        logits = seen[-1][None] if seen[-1].ndim == 2 else seen[-1]  # pictures that are packed are one row
    return _numbers(logits, None).double()


def _by_hand(model: Model, layer: Any, head: int, base: Mapping[str, Any], source: Mapping[str, Any]) -> Tensor:
    """The score with a head's columns of the projection's input from another run, in one pass where the layer has
    several: torch's own hooks only."""
    projection = model.module.get_submodule(layer.out)
    columns = slice(head * layer.d_value, (head + 1) * layer.d_value)
    kept: list[Tensor] = []
    handle = projection.register_forward_pre_hook(lambda _, args: kept.append(args[0].detach().clone()))
    _score(model, source)
    handle.remove()
    calls = iter(enumerate(kept))

    def put(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        number, other = next(calls)
        if layer.nth is not None and number != layer.nth.number:
            return args
        new = args[0].clone()
        new[..., columns] = other[..., columns]
        return new, *args[1:]

    handle = projection.register_forward_pre_hook(put)
    try:
        return _score(model, base)
    finally:
        handle.remove()


STEPS: tuple[tuple[Verdict, Callable[[Model, TypeRow], None]], ...] = (
    ("refused", _found), ("fails", _checked), ("partly", _able), ("partly", _swept),
    ("partly", _placed),
)  # fmt: skip
"""What is asked, in order, and the verdict where it is refused."""


def _line(why: BaseException) -> str:
    said = " ".join(str(why).split())
    named = "" if isinstance(why, InterpError) else f"{type(why).__name__}: "
    return f"{named}{said[:300]}"


def survey(names: Iterable[str] = ()) -> Iterator[TypeRow]:
    """One row a type, as each is done."""
    for name in list(names) or types():
        yield examine(name)


def survey_denoisers(names: Iterable[str] = ()) -> Iterator[TypeRow]:
    """The same of the classes of diffusers that denoise."""
    for name in list(names) or kinds():
        torch.manual_seed(0)
        yield examine(name, denoisers)


def sums(rows: Sequence[TypeRow]) -> dict[str, object]:
    """How many types have which verdict, the most frequent first, and how many have heads and could be built."""
    import transformers

    counts, judged = _counted(rows)
    version = transformers.__version__
    return {"types": len(rows), "judged": judged, "totals": dict(counts.most_common()), "transformers": version}


def totals(rows: Sequence[TypeRow]) -> str:
    """The same in words, with the share that passes."""
    counts, judged = _counted(rows)
    share = f"; {counts['pass'] / judged:.1%} of {judged} that could be judged pass" if judged else ""
    return ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common()) + share


def _counted(rows: Sequence[TypeRow]) -> tuple[Counter[Verdict], int]:
    counts = Counter(row.verdict for row in rows)
    return counts, sum(counts[one] for one in JUDGED)
