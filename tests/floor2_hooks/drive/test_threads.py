"""What is put on a model while its blocks are driven is met by the thread that drives them and by no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier, get_ident
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interp
from interp.hooks.drive.faster import PACKED, products
from interp.hooks.drive.intercept import Intercept, as_made
from interp.hooks.examples.example import example
from interp.zoo.families import tiny

MATMUL: Any = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009, torch puts it there when it is imported


def first(logits: Tensor, _: Any) -> Tensor:
    """A metric with a gradient, of a language model or a classifier."""
    last = logits if logits.ndim == 2 else logits[:, -1]
    return last[:, 1] - last[:, 0]


def plain(m: interp.Model, kwargs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = m.module(**m.called_with(kwargs)).logits
    return logits


@contextmanager
def meanwhile(m: interp.Model, kwargs: dict[str, Any]) -> Iterator[list[Tensor]]:
    """Whenever this thread comes to an attention, an MLP or the head, another one runs the whole model first."""
    found: list[Tensor] = []
    mine = get_ident()
    with ThreadPoolExecutor(1) as other:

        def hook(*_: Any) -> None:
            if get_ident() == mine:
                found.append(other.submit(plain, m, kwargs).result())

        inside = [c for c in m.module.modules() if any(n in type(c).__name__ for n in ("Attention", "MLP", "FF"))]
        head = [child for child in m.module.modules() if isinstance(child, nn.Linear)][-1]
        handles = [child.register_forward_pre_hook(hook) for child in (*inside, head)]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()


CALLS: dict[str, Callable[..., Any]] = {
    "patch": lambda m, how: interp.patch(m, sites=["L*.H*.z", "L*.mlp_out", "L1.H1.result"], **how),
    "path_patch": lambda m, how: interp.path_patch(m, receivers="L1.H*.q_in", **how),
    "path_patch to the logits": lambda m, how: interp.path_patch(m, receivers="logits", **how),
    "edges": lambda m, how: interp.edges(m, method="exact", **how),
}


@pytest.mark.parametrize(
    ("name", "call"),
    [("gpt2", "patch"), ("gpt2", "path_patch"), ("gpt2", "path_patch to the logits"), ("gpt2", "edges"),
     ("t5", "patch"), ("vit", "patch"), ("llava", "patch")],
)  # fmt: skip
def test_plain_forwards_of_another_thread_are_the_models_own(name: str, call: str) -> None:
    m = interp.attach(tiny(name))
    base, source = (dict(example(m.module, batch=2, length=6, seed=seed)) for seed in (1, 2))
    how = {"base": base, "source": source, "metric": first}
    ask = CALLS[call] if len(m.anatomy.towers) == 1 else lambda m, how: interp.patch(m, sites=TOWERS[name], **how)
    alone, expected = ask(m, how).values, plain(m, base)
    with meanwhile(m, base) as found:
        beside = ask(m, how).values
    assert len(found) > 8
    assert all(torch.equal(logits, expected) for logits in found)
    assert torch.equal(beside, alone)


@pytest.mark.faults
@pytest.mark.parametrize("name", ["gpt2", "llama", "vit"])
def test_a_sweep_an_edited_run_and_plain_forwards_at_once_are_each_their_own(name: str, tmp_path: Path) -> None:
    """All start together, again and again, and each has to give what it gives alone, bit by bit."""
    m = interp.attach(tiny(name))
    base, source = (dict(example(m.module, batch=2, length=6, seed=seed)) for seed in (1, 2))
    edits = [interp.Zero("L0.H1.z"), interp.Scale("L1.H0.z", 2.0)]
    how = {"base": base, "source": source, "metric": first, "sites": "L*.H*.z"}
    jobs: dict[str, Callable[[int], Tensor]] = {
        "sweep": lambda n: interp.patch(m, **how).values,
        "journaled": lambda n: interp.patch(m, **how, out=tmp_path / str(n), budget=4000).values,
        "edited": lambda n: m.run(base, edits=edits, record="L1.z")["L1.z"],
        "plain": lambda n: plain(m, base),
        "statistics": lambda n: torch.tensor(m.attention(base, stats=["entropy"])["entropy"].values),
    }
    alone = {kind: job(0) for kind, job in jobs.items()}
    start = Barrier(len(jobs))

    def again(kind: str) -> list[Tensor]:
        start.wait()
        return [jobs[kind](n) for n in range(1, 5)]

    with ThreadPoolExecutor(len(jobs)) as pool:
        found = dict(zip(jobs, pool.map(again, jobs), strict=True))
    for kind, several in found.items():
        assert all(torch.equal(one, alone[kind]) for one in several), kind
    assert not m.handles()
    assert not any("forward" in vars(child) for child in m.module.modules())


TOWERS = {"t5": ["decoder.L*.H*.z", "cross.L*.H*.z"], "llava": ["vision.L0.H*.z", "text.L*.H*.z"]}


def test_two_threads_sweep_one_model() -> None:
    m = interp.attach(tiny("gpt2"))
    base, source = (dict(example(m.module, batch=2, length=6, seed=seed)) for seed in (1, 2))
    ask = lambda: interp.patch(m, base=base, source=source, metric=first, sites="L*.H*.z").values  # noqa: E731
    alone = ask()
    with ThreadPoolExecutor(2) as pool:
        made = [job.result() for job in [pool.submit(ask) for _ in range(4)]]
    assert all(torch.equal(one, alone) for one in made)
    assert not any("forward" in vars(child) for child in m.module.modules())


def test_each_thread_gets_back_what_it_had_whoever_leaves_first() -> None:
    layer = nn.Linear(2, 2)
    x = torch.ones(1, 2)
    own = layer(x)
    with ThreadPoolExecutor(1) as other:
        mine, theirs = Intercept(layer), other.submit(Intercept, layer).result()
        mine.instead(layer, lambda x: x + 1)
        other.submit(theirs.instead, layer, lambda x: x + 2).result()
        mine.instead(layer, lambda x: x + 3)
        assert not as_made(layer)
        assert torch.equal(layer(x), x + 3)
        assert torch.equal(other.submit(layer, x).result(), x + 2)
        mine.close()
        assert as_made(layer)
        assert torch.equal(layer(x), own)
        assert torch.equal(other.submit(layer, x).result(), x + 2)
        other.submit(theirs.close).result()
    assert "forward" not in vars(layer)
    layer.forward = lambda x: x - 1  # type: ignore[method-assign]
    with Intercept(layer) as put:
        assert not as_made(layer)
        put.instead(layer, lambda x: x + 1)
    assert torch.equal(layer(x), x - 1)


def test_the_setting_of_products_is_given_back_by_the_last_thread() -> None:
    before = MATMUL.fp32_precision
    one, other = products(PACKED), products(PACKED)
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert MATMUL.fp32_precision == "bf16"
    other.__exit__(None, None, None)
    assert MATMUL.fp32_precision == before


def test_statistics_and_weights_are_those_of_their_own_thread() -> None:
    """Another thread runs another text through the model whenever this one comes to an attention."""
    m = interp.attach(tiny("llama", dtype=torch.float64))
    mine, theirs = (dict(example(m.module, batch=2, length=6, seed=seed)) for seed in (1, 2))
    want = m.attention(mine, stats=["entropy", "received"])
    with meanwhile(m, theirs):
        found = m.attention(mine, stats=["entropy", "received"])
    for name in want.names:
        assert torch.equal(torch.tensor(found[name].values), torch.tensor(want[name].values))
