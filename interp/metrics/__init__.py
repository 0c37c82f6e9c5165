"""What a metric reads from logits: the shipped ones (`shipped`) and how any of them is asked (`judge`, `judges`)."""

from __future__ import annotations

from interp.metrics.shipped import (
    KL,
    Accuracy,
    Logit,
    LogitDifference,
    LogProb,
    MetricError,
    Probability,
    Reading,
    RecoveredFraction,
)

__all__ = [
    "KL",
    "Accuracy",
    "LogProb",
    "Logit",
    "LogitDifference",
    "MetricError",
    "Probability",
    "Reading",
    "RecoveredFraction",
]
