"""How a run is judged: by its logits (`shipped`) or by the value at another site (`places`), and how any of these is
asked (`judge`, `judges`, `reading`)."""

from __future__ import annotations

from interp.metrics.ids import MetricError
from interp.metrics.places import Along, At, Distance, Similarity
from interp.metrics.reading import on
from interp.metrics.shipped import (
    KL,
    Accuracy,
    Logit,
    LogitDifference,
    LogProb,
    Probability,
    Reading,
    RecoveredFraction,
)

__all__ = [
    "KL",
    "Accuracy",
    "Along",
    "At",
    "Distance",
    "LogProb",
    "Logit",
    "LogitDifference",
    "MetricError",
    "Probability",
    "Reading",
    "RecoveredFraction",
    "Similarity",
    "on",
]
