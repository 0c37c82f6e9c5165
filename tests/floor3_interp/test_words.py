"""A word that a call does not know is refused with those it knows, never taken for one of them."""

from __future__ import annotations

import json

import pytest
from house import python

CALLS = {
    "reduce of spans": ("patch(align=spans, reduce=BAD)", "reduce is 'last' or 'mean', got 'bogus'"),
    "reduce without spans": ("patch(align='index', reduce='last')", "give it together with align="),
    "reduce of a log-probability": ("metrics.LogProb(((7,),), reduce=BAD)", "reduce is 'sum' or 'mean', got 'bogus'"),
    "positions of a metric": ("metrics.Logit(((7,),), positions=BAD)(logits, x)", "positions are 'last' or numbers"),
    "order of cells": ("effects.top(1, by=BAD)", "by is one of 'abs', 'high', 'low', got 'bogus'"),
    "order of names": ("tasks.ioi(n=2, order=BAD)", "expected order among None, 'ABBA', 'BABA', got 'bogus'"),
    "split": ("tasks.ioi(n=2, split=BAD)", "expected a split 'train' or 'heldout', got 'bogus'"),
    "prompts": ("interp.report(m, task=task, out=OUT, prompts=BAD)", "prompts is 'auto' or 'all', got 'bogus'"),
    "exact": ("interp.report(m, task=task, out=OUT, exact=BAD)", "exact is 'auto', True or False, got 'bogus'"),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each call says, in a process of its own: under pytest types are checked first."""
    code = f"""
import json, torch, interp
from interp import metrics, tasks
from interp.patching import align
from interp.planted.probes import probe_task
torch.set_num_threads(1)
m, BAD, OUT = interp.load("zoo:planted-decoder"), "bogus", {str(tmp_path_factory.mktemp("words") / "report")!r}
task = probe_task("planted-decoder", "question", model=m)
x, asked = task.clean, dict(base=task.corrupt, source=task.clean, metric=task.metric)
logits, spans = m.run(x)["logits"], align(task.corrupt.find("lake"), task.clean.find("fox"))
def patch(**how):
    return interp.patch(m, **asked, sites="L*.z", **how)
effects, found = interp.patch(m, **asked, sites="L*.H*.z"), {{}}
for name, call in {[(name, call) for name, (call, _) in CALLS.items()]!r}:
    try:
        found[name] = f"nothing: {{eval(call)!r}}"
    except interp.InterpError as why:
        found[name] = str(why)
print(json.dumps(found))
"""
    answer: dict[str, str] = json.loads(python(code).splitlines()[-1])
    return answer


@pytest.mark.parametrize("name", CALLS)
def test_a_word_that_nobody_knows_is_refused(name: str, said: dict[str, str]) -> None:
    assert CALLS[name][1] in said[name]
