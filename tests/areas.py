"""Which `pytest -m <area>` a test belongs to, by the room it lies in."""

from __future__ import annotations

from pathlib import Path

# By the start of the path below tests/; every row that fits counts.
AREAS: dict[str, str] = {
    "repository/": "house",
    "floor1_kernels/": "kernels",
    "floor2_hooks/": "hooks",
    "floor2_hooks/drive/": "patching",
    "floor2_hooks/slopes/": "attribution",
    "floor3_interp/test_": "hooks",
    "floor3_interp/loading/": "hooks",
    "floor3_interp/preparing/": "hooks",
    "floor3_interp/cells/": "patching",
    "floor3_interp/scale/": "patching",
    "floor3_interp/results/": "patching",
    "floor3_interp/results/test_figures": "product",
    "floor3_interp/results/test_shown": "product",
    "floor3_interp/zoo/": "zoo",
    "floor3_interp/zoo/test_doctor": "hooks",
    "floor3_interp/zoo/test_families": "hooks",
    "floor3_interp/heads/functions/": "frontier",
    "floor3_interp/heads/reach/": "frontier",
    "floor3_interp/heads/weights/test_spaces": "frontier",
    "floor3_interp/patching/lenses/test_fitted": "frontier",
    "floor3_interp/long/test_contrastive": "frontier",
    "floor3_interp/planted/": "zoo",
    "floor3_interp/tasks/": "zoo",
    "floor3_interp/metrics/": "zoo",
    "floor3_interp/formats/": "zoo",
    "floor3_interp/patching/": "patching",
    "floor3_interp/directions/": "patching",
    "floor3_interp/attribution/": "attribution",
    "floor3_interp/circuits/": "circuits",
    "floor3_interp/circuits/discovery/": "frontier",
    "floor3_interp/circuits/test_judge": "frontier",
    "floor3_interp/circuits/test_interchange": "frontier",
    "floor3_interp/heads/": "heads",
    "floor3_interp/pruning/": "heads",
    "floor3_interp/sink/": "heads",
    "floor3_interp/diffusion/": "diffusion",
    "floor2_hooks/survey/test_denoisers": "diffusion",
    "floor3_interp/long/": "heads",
    "floor3_interp/vision/": "vision",
    "floor3_interp/operators/": "operators",
    "floor3_interp/robustness/": "frontier",
    "floor3_interp/forgetting/": "frontier",
    "floor3_interp/explorer/": "product",
    "floor3_interp/reporting/": "product",
    "floor3_interp/commands/": "product",
    "devices/": "device",
    "processes/": "scale",
    "floor4_studies/test_attention": "kernels",
    "floor4_studies/test_interop": "hooks",
    "floor4_studies/test_patching": "patching",
    "floor4_studies/test_real": "heads",
    "floor4_studies/test_relp": "attribution",
    "floor4_studies/test_prune": "heads",
    "floor4_studies/test_icl": "heads",
    "floor4_studies/test_sinks": "heads",
    "floor4_studies/test_vision": "vision",
    "floor4_studies/test_operators": "operators",
    "floor4_studies/test_diffusion": "diffusion",
    "floor4_studies/test_zoo": "zoo",
    "floor4_studies/test_notebooks": "product",
    "repository/test_docs": "product",
    "repository/test_site": "product",
}


def areas(file: Path) -> set[str]:
    """The areas of a test file, given below tests/ or whole."""
    below = file.relative_to(Path(__file__).parent) if file.is_absolute() else file
    return {area for start, area in AREAS.items() if below.as_posix().startswith(start)}
