"""What is measured of attention patterns of any length, a few rows at a time: maps, strength by distance, entropy.

Of one head and example, over its n real tokens numbered 0..n-1:

    map        [G, G]: rows and keys in G bins of equal length; the mean over the rows of a bin of their weight on a bin
    profile    [distance]: the mean over rows of their weight at a distance; |i - j| in a text, in the bands 0, 1, 2, 3,
               4-7, 8-15, and so on; on a grid of patches the Chebyshev distance, patches alone
    distance   the mean over rows of the sum over keys of weight times that distance; on a grid of the weight that is on
               patches, so that weight on a class token is no nearness
    entropy    the mean over rows of -sum p ln p, in nats; relative to ln of the number of keys the row sees
    rank       effective rank: exp of the entropy of the whole pattern's singular values as shares of their sum (Roy and
               Vetterli 2007), for inputs of at most `SHORT` tokens, whose patterns are held one layer at a time
"""

from __future__ import annotations

import torch
from torch import Tensor

from interp.heads.kinds.page import Page

SHORT = 256
FAINT = 1e-6
"""Weight on patches that rounding could make up."""

Found = dict[str, Tensor]


class Shape:
    """One layer being measured."""

    def __init__(self, page: Page, bins: int, *, rank: bool) -> None:
        self.page, self.bins = page, bins
        self.order = (page.valid.cumsum(1) - 1).clamp(min=0)
        self.count = page.valid.sum(1)
        self.bin = (self.order * bins // self.count[:, None]).clamp(max=bins - 1)
        self.rows: list[Tensor] | None = [] if rank else None
        self.total: Found = {}

    def take(self, at: Tensor, weights: Tensor) -> None:
        """The weights [example, head, row, key] of the query columns `at`."""
        at = at.cpu()
        real = self.page.valid[:, at]
        p = weights.float().cpu() * real[:, None, :, None]
        self._add("map", self._pooled(at, p))
        self._add("profile", self._profile(at, p))
        self._add("distance", self._distance(at, p))
        logs = torch.special.entr(p).sum(-1).double()
        self._add("entropy", logs.sum(2))
        self._add("relative entropy", (logs / self._ceiling(at)[:, None]).sum(2))
        if self.rows is not None:
            self.rows.append(p.double())

    def _add(self, name: str, value: Tensor) -> None:
        self.total[name] = self.total[name] + value if name in self.total else value

    def _pooled(self, at: Tensor, p: Tensor) -> Tensor:
        keys = torch.nn.functional.one_hot(self.bin, self.bins).float() * self.page.valid[..., None]
        on_bins = p @ keys[:, None]
        return torch.einsum("brg,bhrf->bhgf", keys[:, at].double(), on_bins.double())

    def _profile(self, at: Tensor, p: Tensor) -> Tensor:
        if not self.page.picture:
            return self._in_bands(at, p)
        band = torch.nn.functional.one_hot(band_of(self.page, at), len(bands(self.page)) + 1)[..., :-1].double()
        return torch.stack([torch.einsum("hrk,rkd->hd", *pair) for pair in zip(p.double(), band, strict=True)])

    def _in_bands(self, at: Tensor, p: Tensor) -> Tensor:
        """The weight of all rows in each band of a text [example, head, band]: differences of running sums."""
        running = torch.nn.functional.pad(p.cumsum(-1), (1, 0))
        last = p.shape[-1]

        def between(low: Tensor, high: Tensor) -> Tensor:
            ends = (edge.clamp(0, last).expand(*p.shape[:2], -1)[..., None] for edge in (low, high))
            first, end = (running.gather(3, one).squeeze(3) for one in ends)
            return (end - first).double().clamp(min=0).sum(2)

        parts = []
        for low, high in bands(self.page):
            behind = between(at - high, at - low + 1)
            parts.append(behind if low == 0 else behind + between(at + low, at + high + 1))
        return torch.stack(parts, -1)

    def _distance(self, at: Tensor, p: Tensor) -> Tensor:
        away, counted = apart(self.page, at)
        total = torch.einsum("bhrk,brk->bhr", p, (away * counted).float()).double()
        if self.page.picture:
            weight = torch.einsum("bhrk,brk->bhr", p, counted.float()).double()
            total = torch.where(weight > FAINT, total / weight.clamp(min=FAINT), 0.0)
        return total.sum(2)

    def _ceiling(self, at: Tensor) -> Tensor:
        """ln of how many keys each row sees, at least ln 2 so that rows that see one key have 0 / ln 2."""
        seen = self.order[:, at] + 1 if self.page.causal else self.count[:, None].expand(-1, len(at))
        return seen.clamp(min=2).double().log()

    def result(self) -> Found:
        """Each measure [head, example, ...]."""
        page, n = self.page, self.count.double()[:, None]
        per_bin = torch.nn.functional.one_hot(self.bin, self.bins).double().mul(page.valid[..., None]).sum(1)
        rows = page.patch.sum(1).double()[:, None] if page.picture else n
        found = {
            "map": self.total["map"] / per_bin[:, None, :, None],
            "profile": self.total["profile"] / rows[..., None],
            "distance": self.total["distance"] / rows,
            "entropy": self.total["entropy"] / n,
            "relative entropy": self.total["relative entropy"] / n,
        }
        if self.rows is not None:
            found["effective rank"] = effective_rank(torch.cat(self.rows, 2))
        return {name: value.transpose(0, 1) for name, value in found.items()}


def effective_rank(pattern: Tensor) -> Tensor:
    """[..., row, key] to [...]."""
    sizes = torch.linalg.svdvals(pattern)
    share = sizes / sizes.sum(-1, keepdim=True).clamp(min=1e-300)
    return (-(share * share.clamp(min=1e-300).log()).sum(-1)).exp()


def bands(page: Page) -> list[tuple[int, int]]:
    """First and last distance of each band of the profile."""
    if page.picture:
        far = int(max(page.cells[..., 2].amax(), page.cells[..., 3].amax()))
        return [(d, d) for d in range(far + 1)]
    found = [(d, d) for d in range(min(4, page.length))]
    low = 4
    while low < page.length:
        found.append((low, 2 * low - 1))
        low *= 2
    return found


def apart(page: Page, at: Tensor) -> tuple[Tensor, Tensor]:
    """How far apart each pair [example, row, key] is, and which pairs count."""
    if page.picture:
        rows, keys = page.cells[:, at, None], page.cells[:, None]
        away = (rows[..., 2:] - keys[..., 2:]).abs().amax(-1)
        return away, page.patch[:, at, None] & page.patch[:, None] & (rows[..., :2] == keys[..., :2]).all(-1)
    away = (torch.arange(page.length)[None] - at[:, None]).abs()[None].expand(len(page.valid), -1, -1)
    return away, page.valid[:, None] & page.valid[:, at, None]


def band_of(page: Page, at: Tensor) -> Tensor:
    """Which band each pair [example, row, key] is in; one past the last where it is in none."""
    known = bands(page)
    away, counted = apart(page, at)
    band = torch.bucketize(away.contiguous(), torch.tensor([low for low, _ in known]), right=True) - 1
    return band.where(counted, len(known))
