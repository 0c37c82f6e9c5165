"""Reading back what was written to a directory, whatever it holds: a tape, a result, or a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

from interp.cells.journal import PLAN, planned, progress
from interp.hooks.sealed import understood
from interp.kernels.errors import InterpError
from interp.results.effects import Effects

SAVED = {
    "tape.json": "interp.hooks.run.tape:open_tape",
    "span_edges.json": "interp.circuits.found.span_edges:SpanEdges.load",
    "verdict.json": "interp.circuits.real.verdict:Verdict.load",
    "edges.json": "interp.circuits.found.edge_scores:Edges.load",
    "faithfulness.json": "interp.circuits.judged:Faithfulness.load",
    "retrieval.json": "interp.results.retrieval:RetrievalHeads.load",
    "masking.json": "interp.long.masking:Masking.load",
    "influence.json": "interp.results.texts:Influence.load",
    "agreement.json": "interp.results.agreement:Agreement.load",
    "importance.json": "interp.heads.measures.table:Importance.load",
    "sink_knockout.json": "interp.sink.sink_knockout:SinkKnockout.load",
    "act.json": "interp.sink.act:Act.load",
    "sinks.json": "interp.results.sinks:Sinks.load",
    "gates.json": "interp.results.gates:Gates.load",
    "curve.json": "interp.pruning.curve:Curve.load",
    "operators.json": "interp.operators.compare:Compared.load",
    "mimicry.json": "interp.operators.mimic:Mimicry.load",
    "routes.json": "interp.operators.route_heads:Routes.load",
    "replaceable.json": "interp.operators.replaceable:Replaceable.load",
    "together.json": "interp.heads.reach.together:Together.load",
    "backups.json": "interp.heads.reach.backups:Backups.load",
    "pursuit.json": "interp.heads.reach.pursuit:Pursuit.load",
    "overlap.json": "interp.heads.weights.overlap:HeadOverlap.load",
    "directions.json": "interp.heads.weights.directions:HeadDirections.load",
    "virtual_heads.json": "interp.heads.weights.virtual:VirtualHeads.load",
    "functions.json": "interp.heads.functions.result:HeadFunctions.load",
    "function_vector.json": "interp.heads.functions.vectors:FunctionVector.load",
    "corpus.json": "interp.scale.corpora.read:CorpusHeads.load",
    "roles.json": "interp.results.roles:HeadRoles.load",
    "atlas.json": "interp.heads.patterns.result:Atlas.load",
    "visual_heads.json": "interp.vision.heads:VisualHeads.load",
    "carve.json": "interp.vision.maps.carve:Carved.load",
    "grounding.json": "interp.vision.maps.ground:Grounding.load",
    "perturbed.json": "interp.vision.robust.perturb:Perturbed.load",
    "mixed.json": "interp.vision.robust.mixing:Mixed.load",
    "adversarial.json": "interp.vision.robust.adversarial:Adversarial.load",
    "attention_perturbation.json": "interp.robustness.result:AttentionPerturbation.load",
    "dampened.json": "interp.forgetting.dampened:Dampened.load",
    "models_compared.json": "interp.forgetting.compare_models:ModelsCompared.load",
    "across_models.json": "interp.forgetting.patch_across:AcrossModels.load",
    "lens_attack.json": "interp.forgetting.lens_attack:LensAttack.load",
    "probe.json": "interp.vision.probes.probe:AttentiveProbe.load",
    "concepts.json": "interp.vision.probes.concepts:Concepts.load",
    "pruning_search.json": "interp.vision.tokens.search:PruningSearch.load",
    "token_importance.json": "interp.vision.tokens.stages:TokenImportance.load",
    "circuits.json": "interp.results.weights:HeadCircuits.load",
    "maps.json": "interp.diffusion.maps:Maps.load",
    "hunt.json": "interp.diffusion.hunt:Hunt.load",
    "visual_sinks.json": "interp.vision.sinks:VisualSinks.load",
    "hidden_sinks.json": "interp.vision.hide_sinks:HiddenSinks.load",
    "divergence.json": "interp.vision.divergence:Divergence.load",
    "reinforced.json": "interp.vision.reinforce:Reinforced.load",
    "fitted_lens.json": "interp.patching.lenses.fitted:FittedLens.load",
    "backward_lens.json": "interp.patching.lenses.backward:BackwardLens.load",
    "lens.safetensors": "interp.patching.lenses.said:Lens.load",
    "run.json": "interp.results.effects:Effects.load",
}
"""The file that says what a directory holds, and who reads it."""


def open_directory(directory: str | Path) -> Any:
    """What was saved there, as the class that wrote it: a tape, effects, edges, head scores and so on. A finished sweep
    of several metrics comes back as a dict by metric."""
    folder = Path(directory)
    if (folder / PLAN).exists():
        return _sweep(folder)
    for name, home in SAVED.items():
        if (folder / name).exists():
            module, _, read = home.partition(":")
            return attrgetter(read)(import_module(module))(folder)
    raise InterpError(f"{folder} holds nothing that interp saved: expected {', '.join(SAVED)} or {PLAN} in it.")


def _sweep(folder: Path) -> Effects | dict[str, Effects]:
    with understood(folder / PLAN):
        names = list(planned(folder)["metrics"])
    found = _parts(folder, names)
    if (folder / "reverse" / PLAN).exists():
        back = _parts(folder / "reverse", names)
        found = [replace(one, reverse=other) for one, other in zip(found, back, strict=True)]
    return found[0] if len(names) == 1 else dict(zip(names, found, strict=True))


def _parts(folder: Path, names: Sequence[str]) -> list[Effects]:
    parts = [folder] if len(names) == 1 else [folder / f"metric{n}" for n in range(len(names))]
    if not all((part / "run.json").exists() for part in parts):
        done = progress(folder)
        assert done is not None
        raise InterpError(
            f"{folder} holds an unfinished sweep, {done[0]} of {done[1]} chunks: make the same call with out= again to"
            " continue it."
        )
    return [Effects.load(part) for part in parts]
