"""A paragraph of methods for a paper: what was done, with which numbers, citing papers that are in references.bib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from interp.papers import PAPERS, Paper
from interp.records import labelled, papers_of
from interp.reporting.drawing.tables import tex_escaped
from interp.reporting.pages.page import described
from interp.reporting.sections import sections
from interp.reporting.steps.gathered import Gathered

NAMES = {
    "patch": "exact activation patching", "atp": "attribution patching", "relp": "RelP",
    "direct effect": "direct effects on the logits", "ig": "integrated gradients",
}  # fmt: skip
"""What papers call a method."""


def called(made: Gathered) -> str:
    """The model's name without its folder."""
    return Path(made.model).name if Path(made.model).is_absolute() else made.model


def cited(made: Gathered) -> list[Paper]:
    """The papers behind the rows, and behind what sections did besides."""
    labels = (*made.rows["method"].unique(), *(name for section in sections() for name in section.cites(made)))
    return [paper for label in labels for paper in papers_behind(label)]


def papers_behind(label: str) -> list[Paper]:
    """The papers of a method or of what a section measures, by its name in the table."""
    record, said = labelled(label), described(label)
    return papers_of(record) if record is not None else [PAPERS[n] for n in (said.papers if said else ())]


def paragraph(made: Gathered, *, tex: bool) -> str:
    """The paragraph, as LaTeX with \\citep or as plain text with the keys in brackets."""
    escaped = tex_escaped if tex else str

    def cite(papers: Sequence[Paper]) -> str:
        keys = list(dict.fromkeys(paper.key for paper in papers))
        if not keys:
            return ""
        return rf" \citep{{{','.join(keys)}}}" if tex else f" [{'; '.join(keys)}]"

    rows, about = made.ranked, made.about
    if not len(rows):
        return ""
    first = rows.iloc[0]
    n, heads = int(rows["n"].max()), made.rows["site"].nunique()
    task = f" on {n} prompts of the task {escaped(made.task)}" if made.task else f" on {n} prompts"
    held = ", ".join(escaped(str(about[name])) for name in ("dtype", "attention") if about.get(name))
    by = escaped(NAMES.get(str(first["method"]), str(first["method"])))
    what = "of the clean run put into the corrupt one" if first["direction"] == "denoise" else "of the other run"
    said = [
        f"We measured {heads} attention heads of {escaped(called(made))}{f' ({held})' if held else ''}{task}.",
        f"Heads were ranked by {by}{cite(papers_behind(str(first['method'])))}: the output of one head {what}, and the"
        f" change of {escaped(str(first['metric']))}.",
    ]
    bare = (str(name).removesuffix(" @ repeated") for name in made.rows["method"].unique())
    others = [name for name in dict.fromkeys(bare) if name != first["method"]]
    if others:
        named = ", ".join(f"{escaped(NAMES.get(name, name))}{cite(papers_behind(name))}" for name in others)
        said.append(f"The other methods are {named}.")
    if n > 1:
        said.append(
            "Intervals are 95% bootstrap intervals over prompts (1,000 draws).".replace("%", r"\%" if tex else "%")
        )
    for one in made.answers.get("ablation", ()):
        where = "held-out prompts" if one["split"] == "heldout" else "the same prompts"
        said.append(
            f"As a control, values of corrupt prompts were put into the first k heads at once on {one['n']} {where} (k"
            f" = {', '.join(map(str, one['sizes']))}), and compared with random sets of heads matched on layer and"
            " output norm and with the heads that write most."
        )
    if "circuit" in made.answers:
        said.append(
            f"Edges were scored by EAP-IG{cite(papers_behind('circuit'))}, and the circuit cut from them was judged by"
            " the share of the metric that it keeps, compared with random circuits of the same size and layers."
        )
    versions = about.get("versions") or {}
    used = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers") if versions.get(name))
    said.append(
        f"Computed with {escaped(', '.join(['interp', used]) if used else 'interp')}, seed {about.get('seed', 0)}."
    )
    return " ".join(said)
