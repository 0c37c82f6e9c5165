"""Reports: everything this package measures about a task, checked (`report`), grids of them (`experiment`), and what
changed between two (`difference`). Their steps and pages are in their own folders."""

from __future__ import annotations

from interp.reporting.difference import difference
from interp.reporting.experiment import experiment
from interp.reporting.report import report

__all__ = ["difference", "experiment", "report"]
