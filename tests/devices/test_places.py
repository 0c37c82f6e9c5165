"""Metrics of places inside a model on two devices: the CPU's numbers, wherever the place and its target lie."""

from __future__ import annotations

import pytest
import torch
from models import attached
from placed import Place

import interp
from interp.hooks.examples.example import example
from interp.metrics import Along, Similarity
from interp.metrics.places import Pooled


def found(m: interp.Model, metric: Pooled) -> list[torch.Tensor]:
    x, y = (m.inputs(example(m.module, batch=2, length=7, seed=seed, padding="left")) for seed in (1, 2))
    asked = {"base": x, "source": y, "metric": metric.to(m, y) if isinstance(metric, Similarity) else metric}
    patched = interp.patch(m, sites="L*.H*.z", **asked)
    estimated = interp.attribute(m, sites="L*.H*.z", verify=0, **asked)
    rolled = interp.relevance(m, x, metric=asked["metric"], method="chefer-generic")
    return [patched.values, patched.base, estimated.values, rolled.values]


@pytest.mark.parametrize("site", ["final_norm", "L0.resid_post"])
@pytest.mark.parametrize("pool", ["mean", "last"])
@pytest.mark.filterwarnings("ignore:LlamaForCausalLM. the metric reads:UserWarning")
def test_a_metric_of_a_place_has_the_cpus_numbers(site: str, pool: str) -> None:
    drawn = torch.randn(32)
    for metric in (Similarity(site, pool=pool), Along(site, pool=pool, direction=drawn)):  # type: ignore[arg-type]
        for here, there in zip(
            found(attached("llama"), metric), found(Place("two").model("llama"), metric), strict=True
        ):
            torch.testing.assert_close(there.cpu(), here.cpu(), atol=1e-5, rtol=1e-4)
