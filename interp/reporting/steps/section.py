"""What a section of a report is: work written down in steps, and what the page and the files get from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from interp.reporting.steps.gathered import Gathered
from interp.reporting.steps.steps import Steps
from interp.reporting.steps.subject import Subject
from interp.results.figures.figure import Figure


@dataclass(frozen=True)
class Label:
    """What the numbers that rows call so are."""

    about: str
    signed: bool = False
    papers: tuple[str, ...] = ()
    """Their numbers at arXiv."""
    drawn: bool = True
    """Whether there is a map of them."""


@dataclass(frozen=True, eq=False)
class Section:
    """One part of a report."""

    name: str
    place: int
    """When its turn comes: small numbers first."""
    measure: Callable[[Gathered, Subject, Steps], None] = lambda made, subject, steps: None
    """Does the work and puts what came of it into what is gathered."""
    close: Callable[[Gathered, int], None] = lambda made, seed: None
    """What needs no task but what all others, and results that were given, have scored; with a seed."""
    plan: Callable[[Subject], None] | None = None
    """Asks the subject's budget for what it would like, before any work; in the order of places. None where there is no
    work."""
    page: Callable[[Gathered], Mapping[str, Any]] = lambda made: {}
    """What the page is given: lists are put one after the other, mappings into one."""
    figures: Callable[[Gathered], Iterable[tuple[str, Figure | str]]] = lambda made: ()
    labels: Mapping[str, Label] = field(default_factory=dict)
    """Names of numbers (or their starts) that are of this section and of no method's record."""
    cites: Callable[[Gathered], Iterable[str]] = lambda made: ()
    """Calls or choices behind it that no row names, by label."""
    writes: Mapping[str, str] = field(default_factory=dict)
    """Files of its own, and what they are."""
