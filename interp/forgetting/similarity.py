"""Two models' vectors for the same examples: how alike they are, and what a linear reader finds in each.

With X and Y [example, d] centred over examples, linear centred kernel alignment (Kornblith et al. 2019) is

    CKA = ||Y' X||^2 / (||X' X|| ||Y' Y||)      Frobenius norms; 1 for a rotation and a scale, whatever the widths

The linear probe is ridge regression from standardised vectors to one-hot labels, with penalty `RIDGE` times the number
of examples; each example is judged by a probe that was fitted without its fold. A number that varies by no more than
`ROUNDING` steps of its dtype is a constant: standardising would make a signal of rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 0.1
ROUNDING = 16
FOLDS = 5


def cka(x: Tensor, y: Tensor) -> Tensor:
    """Of vectors [..., example, d]; NaN where one side does not vary."""
    x, y = (one.double() - one.double().mean(-2, keepdim=True) for one in (x, y))
    gram, other = x @ x.mT, y @ y.mT  # examples are fewer than numbers
    across = (gram * other).sum((-2, -1))
    size = (gram.square().sum((-2, -1)) * other.square().sum((-2, -1))).sqrt()
    return torch.where(size > 0, across / size, torch.nan)


def cka_interval(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """CKA with the ends of its interval, 1.96 jackknife errors either way (drawing examples twice makes it too large);
    NaN ends below three examples."""
    whole, count = cka(x, y), x.shape[-2]
    if count < 3:
        return whole, torch.full_like(whole, torch.nan), torch.full_like(whole, torch.nan)
    left = [[n for n in range(count) if n != out] for out in range(count)]
    each = torch.stack([cka(x[..., one, :], y[..., one, :]) for one in left])
    error = ((count - 1) / count * (each - each.mean(0)).square().sum(0)).sqrt()
    return whole, whole - 1.96 * error, whole + 1.96 * error


def probed(x: Tensor, labels: Tensor, *, folds: int = FOLDS) -> Tensor:
    """[site, example], what a probe says of each example from vectors [site, example, d], fitted on the other folds;
    example n is in fold n modulo `folds`."""
    said = torch.zeros(x.shape[:2], dtype=torch.long)
    fold = torch.arange(x.shape[1]) % folds
    least = ROUNDING * torch.finfo(x.dtype).eps
    for n in range(folds):
        train, test = fold != n, fold == n
        if bool(test.any()):
            said[:, test] = _fitted(
                x[:, train].double(), labels[train], x[:, test].double(), int(labels.max()) + 1, least
            )
    return said


def _fitted(x: Tensor, labels: Tensor, new: Tensor, classes: int, least: float) -> Tensor:
    mean = x.mean(1, keepdim=True)
    spread = x.std(1, correction=0, keepdim=True)
    scale = torch.where(spread > least * x.abs().amax(1, keepdim=True), spread, torch.inf)  # what does not vary, goes
    x, new = (x - mean) / scale, (new - mean) / scale
    target = torch.nn.functional.one_hot(labels, classes).double()
    middle = target.mean(0)
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    dual = torch.linalg.solve(x @ x.mT + RIDGE * x.shape[1] * eye, (target - middle).expand(len(x), -1, -1))
    return (new @ x.mT @ dual + middle).argmax(-1)
