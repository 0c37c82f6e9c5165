"""How one layer of softmax attention does linear regression in its context: train it, and read its weights.

    python experiments/icl_regression.py [--steps 30000] [--heads 4] [--out runs/icl_regression]

He, Pan, Chen and Yang (ICML 2025, arXiv 2503.12734): tokens z_i = (x_i, y_i), y = x.beta + noise, a query
z_q = (x_q, 0) that attends to the L tokens only, and y_hat the last entry of sum_h O_h V_h softmax(K_h Q_h). They find
that KQ_h is w_h times the identity on x (homogeneous: |w_h| alike), OV_h reads y alone with weight u_h, the u_h sum to
zero, and the whole approximates one debiased step of gradient descent, (eta / L) (sum_i y_i x_i - ybar sum_i x_i) . x_q
with eta = sum_h u_h w_h. Here d = 5, L = 40 and noise variance 0.1 as there, and the steps given. The checkpoint is
read if it is there; `--fresh` trains again.

The weights are also put into a module that interp attaches by a `Family`, so that patterns are recorded from the run
and heads of one sign are taken out in it. Figures: experiments/icl_regression.json, which a run writes anew.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import interp

D, L, NOISE = 5, 40, 0.1
FAMILY = interp.families.Family(
    "icl regression", ("Regressor",), "blocks.*.attn", out="o", heads="heads", q=interp.families.Projection("q"),
    k=interp.families.Projection("k"), v=interp.families.Projection("v"), recipe=interp.families.Recipe(mask=1),
)  # fmt: skip


class Attention(nn.Module):
    """Heads as wide as a token."""

    def __init__(self, heads: int, width: int = D + 1) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.q, self.k, self.v = (nn.Linear(width, heads * width, bias=False) for _ in range(3))
        self.o = nn.Linear(heads * width, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (side(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for side in (self.q, self.k, self.v))
        z = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.o(z.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.attn = Attention(heads, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + self.attn(x, mask)


class Regressor(nn.Module):
    """Reads numbers of tokens in a table, so that interp can hold its inputs; the answer is the last entry."""

    def __init__(self, heads: int, tokens: Tensor) -> None:
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(tokens)
        self.blocks = nn.ModuleList([Block(heads, tokens.shape[1])])

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.answer(self.embed(input_ids))[..., None]

    def answer(self, z: Tensor) -> Tensor:
        """y_hat [task, position]; the last token is seen by none, and each sees all others."""
        keys = torch.arange(z.shape[1]) < z.shape[1] - 1
        found: Tensor = self.blocks[0](z, keys.expand(1, 1, z.shape[1], -1))[..., -1]
        return found


def tasks(n: int, random: torch.Generator, *, length: int = L) -> tuple[Tensor, Tensor]:
    """z [task, length + 1, d + 1] with the query last, and y of the query."""
    beta = torch.randn(n, D, 1, generator=random) / math.sqrt(D)
    x = torch.randn(n, length + 1, D, generator=random)
    y = x @ beta + math.sqrt(NOISE) * torch.randn(n, length + 1, 1, generator=random)
    z = torch.cat([x, y], -1)
    z[:, -1, -1] = 0
    return z, y[:, -1, 0]


def predicted(attn: Attention, z: Tensor) -> Tensor:
    """The query's row of the model and nothing else."""
    query, context = z[:, -1:], z[:, :-1]
    q = attn.q(query).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
    k, v = (side(context).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for side in (attn.k, attn.v))
    found = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    out: Tensor = (found @ attn.o.weight[-1])[:, 0]
    return out


def train(attn: Attention, *, steps: int, batch: int, rate: float, seed: int) -> list[float]:
    """Mean squared error every thousand steps; Adam, the rate falls to nothing over the last fifth."""
    random, losses, total = torch.Generator().manual_seed(seed), [], 0.0
    optimizer = torch.optim.Adam(attn.parameters(), lr=rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, 5 * (steps - step) / steps)
        z, y = tasks(batch, random)
        loss = (predicted(attn, z) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
        if (step + 1) % 1000 == 0:
            losses.append(total / 1000)
            total = 0.0
            print(f"step {step + 1}: {losses[-1]:.4f}", flush=True)
    return losses


def circuits(attn: Attention) -> tuple[Tensor, Tensor]:
    """KQ [head, token, token], scaled as scores are, and what a token's entries add to the answer [head, token]."""
    heads, width = attn.heads, attn.width
    q, k, v = (side.weight.detach().unflatten(0, (heads, width)) for side in (attn.q, attn.k, attn.v))
    o = attn.o.weight.detach()[-1].unflatten(0, (heads, width))
    return k.transpose(1, 2) @ q / math.sqrt(width), torch.einsum("hi,hij->hj", o, v)


def readout(kq: Tensor, ov: Tensor) -> dict[str, Any]:
    """How far each head's circuits are what the paper says; `share` is its part of sum |u w|, and heads with less than
    a twentieth of the largest are idle."""
    square = kq[:, :-1, :-1]
    omega, mu = square.diagonal(dim1=1, dim2=2).mean(1), ov[:, -1]
    steps = (omega * mu).abs()
    works = steps > 0.05 * steps.max()
    ideal = omega[:, None, None] * torch.eye(square.shape[-1])
    sizes = omega.abs()[works]
    return {
        "omega": omega.tolist(),
        "mu": mu.tolist(),
        "share": (steps / steps.sum()).tolist(),
        "working_heads": int(works.sum()),
        "away_from_diagonal": ((square - ideal).flatten(1).norm(dim=1) / square.flatten(1).norm(dim=1)).tolist(),
        "y_entries_of_kq": (_beside(kq) / square.flatten(1).norm(dim=1)).tolist(),
        "x_entries_of_ov": (ov[:, :-1].norm(dim=1) / ov.norm(dim=1)).tolist(),
        "spread_of_omega": float(sizes.std(correction=0) / sizes.mean()),
        "sum_of_mu": float(mu.sum().abs() / mu.abs().sum()),
        "signs_agree": bool((omega[works].sign() == mu[works].sign()).all()),
        "eta": float((omega * mu).sum()),
    }


def _beside(kq: Tensor) -> Tensor:
    """Size of a key's y entry against the query's x; the query's own y is 0, so that column is never read."""
    return kq[:, -1, :-1].norm(dim=-1)


def debiased(z: Tensor, eta: float) -> Tensor:
    """(eta / L) (sum_i y_i x_i - ybar sum_i x_i) . x_q"""
    x, y, query = z[:, :-1, :-1], z[:, :-1, -1:], z[:, -1, :-1]
    return eta * (((y - y.mean(1, keepdim=True)) * x).mean(1) * query).sum(-1)


def descent(z: Tensor, eta: float) -> Tensor:
    """One step of plain gradient descent."""
    return eta * ((z[:, :-1, -1:] * z[:, :-1, :-1]).mean(1) * z[:, -1, :-1]).sum(-1)


def ridge(z: Tensor) -> Tensor:
    """The best there is: ridge regression with the noise over the variance of beta."""
    x, y, query = z[:, :-1, :-1], z[:, :-1, -1:], z[:, -1, :-1]
    gram = x.transpose(1, 2) @ x + NOISE * D * torch.eye(D)
    return (torch.linalg.solve(gram, x.transpose(1, 2) @ y)[..., 0] * query).sum(-1)


def reduced(z: Tensor, omega: Tensor, mu: Tensor) -> Tensor:
    """sum_h u_h y . softmax(w_h X x_q): the model with only the numbers of the readout left of it."""
    scores = (z[:, :-1, :-1] @ z[:, -1, :-1, None])[..., 0]
    weights = (omega[:, None, None] * scores).softmax(-1)
    return torch.einsum("h,hbl,bl->b", mu, weights, z[:, :-1, -1])


def compared(attn: Attention, found: dict[str, Any], *, n: int = 20_000, seed: int = 1) -> dict[str, Any]:
    """Errors on new tasks, and how near the model is to each rule: 1 - mean (difference)^2 / mean (model)^2."""
    z, y = tasks(n, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model = predicted(attn, z)
    rules = {
        "debiased": debiased(z, found["eta"]),
        "descent": descent(z, found["eta"]),
        "reduced": reduced(z, torch.tensor(found["omega"]), torch.tensor(found["mu"])),
        "ridge": ridge(z),
    }
    errors = {name: float((rule - y).square().mean()) for name, rule in rules.items()}
    near = {name: 1 - float((rule - model).square().mean() / model.square().mean()) for name, rule in rules.items()}
    best = {name: eta(rule, y) for name, rule in (("debiased", debiased(z, 1.0)), ("descent", descent(z, 1.0)))}
    return {
        "error": {"model": float((model - y).square().mean()), **errors},
        "match": near,
        "best_eta": best,
        "predicted_eta": 1 / (1 + (1 + NOISE) * D / L),
    }


def eta(step: Tensor, y: Tensor) -> float:
    """The step length with the least error."""
    return float((step * y).mean() / step.square().mean())


def through_interp(attn: Attention, found: dict[str, Any], *, n: int = 200, seed: int = 2) -> dict[str, Any]:
    """Patterns of the run against softmax(w_h X x_q), and the answer without the heads of either sign."""
    z, y = tasks(n, torch.Generator().manual_seed(seed))
    module = Regressor(attn.heads, z.flatten(0, 1))
    module.blocks[0].attn.load_state_dict(attn.state_dict())
    m = interp.attach(module.eval(), family=FAMILY)
    ids = torch.arange(n * (L + 1)).view(n, L + 1)
    tape = m.run({"input_ids": ids}, record="L0.pattern", positions="last")
    omega = torch.tensor(found["omega"])
    want = (omega[:, None, None] * (z[:, :-1, :-1] @ z[:, -1, :-1, None])[..., 0]).softmax(-1)
    patterns = (tape["L0.pattern"][:, :, 0, :-1].transpose(0, 1) - want).abs().sum(-1).mean(-1) / 2
    errors = {}
    for name, sign in (("positive", 1), ("negative", -1)):
        heads = [h for h, w in enumerate(found["omega"]) if w * sign > 0]
        edits = [interp.Zero(f"L0.H{','.join(map(str, heads))}.z")] if heads else []
        errors[name] = float((m.run({"input_ids": ids}, edits=edits)["logits"][:, -1, 0] - y).square().mean())
    return {"weight_misplaced": patterns.tolist(), "error_without_heads": errors}


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--steps", type=int, default=30_000)
    given.add_argument("--batch", type=int, default=256)
    given.add_argument("--heads", type=int, default=4)
    given.add_argument("--rate", type=float, default=1e-3)
    given.add_argument("--seed", type=int, default=0)
    given.add_argument("--fresh", action="store_true", help="train again")
    given.add_argument("--out", type=Path, default=Path("runs/icl_regression"))
    given.add_argument("--figures", type=Path, default=Path(__file__).with_suffix(".json"))
    args = given.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    attn, asked = Attention(args.heads), {n: getattr(args, n) for n in ("steps", "batch", "heads", "rate", "seed")}
    checkpoint = args.out / "checkpoint.pt"
    kept = torch.load(checkpoint, weights_only=True) if checkpoint.exists() and not args.fresh else None
    if kept is not None and kept["asked"] == asked:
        attn.load_state_dict(kept["weights"])
        losses = kept["losses"]
    else:
        losses = train(attn, steps=args.steps, batch=args.batch, rate=args.rate, seed=args.seed)
        args.out.mkdir(parents=True, exist_ok=True)
        torch.save({"asked": asked, "weights": attn.state_dict(), "losses": losses}, checkpoint)
    kq, ov = circuits(attn)
    found = readout(kq, ov)
    said = rounded({"experiment": "icl_regression", **asked, "d": D, "length": L, "losses": losses[-1:], **found,
                    **compared(attn, found), **through_interp(attn, found)})  # fmt: skip
    torch.save({"kq": kq, "ov": ov}, args.out / "circuits.pt")
    args.figures.write_text(json.dumps(said, indent=1) + "\n")
    print(json.dumps(said))


if __name__ == "__main__":
    main()
