"""What can go wrong between a question and a model, one class per kind of answer a caller may want to give."""

from __future__ import annotations

from interp.kernels.errors import InterpError


class SiteError(InterpError, KeyError):
    """A site that cannot be parsed, or that this model does not have."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class InputsError(InterpError, ValueError):
    """Inputs that do not fit the model or each other."""


class UnknownPositions(InputsError):
    """Inputs of a tower whose positions are in an order, or of a number, that is not listed."""


class ModelError(InterpError):
    """A model that the hook layer cannot read or change: unknown structure, wrong mode, missing weights."""


class EditError(InterpError, ValueError):
    """An edit that cannot do what it says."""


class NotFired(InterpError):
    """Something that was asked for and never happened during the run."""


class CheckFailed(InterpError):
    """A self-check found a difference between what the model did and what we say it did."""


class BudgetError(InterpError, MemoryError):
    """A recording that would need more memory than allowed."""
