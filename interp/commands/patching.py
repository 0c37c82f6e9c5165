"""`interp patch` and `interp attribute`: what heads do to a task, exactly or estimated."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from interp.commands import options as common
from interp.commands import places
from interp.configs import ConfigError

PATCH = """examples:
  interp patch zoo:ioi                                    # every head, corrupt prompts given clean values
  interp patch zoo:ioi --direction noise --sites "L*.resid_post" --out runs/resid
  interp patch ./my-checkpoint --task ioi -n 64 --json
  interp patch ./my-checkpoint --task ioi --out runs/ioi --engine ray"""
ATTRIBUTE = """examples:
  interp attribute zoo:ioi --method relp                  # estimates, compared with exact patching
  interp attribute ./my-checkpoint --task ioi --method "atp*" --verify 64 --out runs/atp"""


def add(commands: common.Commands) -> None:
    """Both commands."""
    patch = common.command(commands, "patch", "exact activation patching of every head or place", PATCH, run_patch)
    attribute = common.command(
        commands, "attribute", "estimates of patching, checked by patching", ATTRIBUTE, run_attribute
    )
    for parser in (patch, attribute):
        common.about_model(parser)
        common.about_task(parser)
        parser.add_argument("--sites", help="places, such as 'L*.H*.z' (default: all heads)")
        parser.add_argument("--direction", choices=("denoise", "noise"), default="denoise",
                            help="denoise puts clean values into corrupt prompts, noise the other way")  # fmt: skip
        parser.add_argument("--top", type=common.count, default=10, help="rows to print")
        places.about_out(parser, "save the result here")
        common.about_shard(parser)
    patch.add_argument("--engine", choices=("ray",), help="have the workers of a Ray cluster compute the cells: of"
                       " RAY_ADDRESS, or one of this machine that ends with the command")  # fmt: skip
    common.choice(attribute, "--method", "interp.attribute", room="attribution", default="relp")
    attribute.add_argument("--verify", default="auto", help="auto, all, or how many cells to patch exactly (0: none)")


def run_patch(options: argparse.Namespace) -> int:
    """Every cell, exactly."""
    from interp.patching.patch import patch

    model, how = _asked(options)
    how |= {name: given for name in ("out", "engine") if (given := getattr(options, name)) is not None}
    effects: Any = patch(model, seed=options.seed, shard=options.shard, **how)
    if options.shard is not None:
        return common.shard_done(options, effects)
    _told(options, effects, _written(options.out))
    return 0


def run_attribute(options: argparse.Namespace) -> int:
    """Every cell, estimated."""
    from interp.attribution.attribute import attribute
    from interp.commands.opening import counted

    check: Any = options.verify if str(options.verify) in ("auto", "all") else _number(options.verify)
    model, how = _asked(options)
    with counted(model, None, "attributing"):
        effects: Any = attribute(
            model, method=options.method, verify=check, seed=options.seed, out=options.out, shard=options.shard, **how
        )
    if options.shard is not None:
        return common.shard_done(options, effects)
    _told(options, effects, _written(options.out))
    return 0


def _number(text: Any) -> int:
    if not str(text).isdigit():
        raise ConfigError(f"--verify is auto, all or a number, got {text!r}.")
    return int(text)


def _asked(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The model and what is patched; the cost is said."""
    from interp.commands.opening import model_of, task_of
    from interp.cost import cost

    model = model_of(options)
    sites = [options.sites] if options.sites else _all_heads(model)
    found = [(pattern, site) for pattern in sites for site in model.anatomy.sites(pattern)]
    cells = sum(len(model.anatomy.layer(s).heads_of(s)) if ".H" in pattern else 1 for pattern, s in found)
    passes = (cells if options.run is run_patch else 6) + 2
    task = task_of(model, options, passes)
    sides = (task.corrupt, task.clean) if options.direction == "denoise" else (task.clean, task.corrupt)
    common.say(str(cost(model, sides[0], passes)))
    return model, {"base": sides[0], "source": sides[1], "metric": task.metric, "sites": sites}


def _all_heads(model: Any) -> list[str]:
    towers = model.ready().towers
    return ["L*.H*.z"] if len(towers) == 1 else [f"{name}.L*.H*.z" for name in towers]


def _written(out: str | None) -> dict[str, Any]:
    from interp.commands.opening import size_of

    return {} if out is None else {"out": out, "bytes": size_of(Path(out))}


def _told(options: argparse.Namespace, effects: Any, found: dict[str, Any]) -> None:
    from interp.commands.opening import where

    top = effects.top(options.top)
    checked = effects.meta.get("verify")
    more = {} if checked is None else {"verify": checked}
    lines = [common.shown(top), _finding(effects), *_agreement(checked)]
    common.answer(
        options, "\n".join(lines) + where(found), finding=_finding(effects), rows=common.records(top), **more, **found
    )


def _finding(effects: Any) -> str:
    best = int(effects.mean.abs().argmax())
    return (
        f"{effects.sites[best]} moves the metric most: {float(effects.mean[best]):+.4g} on {effects.values.shape[1]}"
        f" prompts (base {float(effects.base.mean()):.4g}, noise floor {effects.noise_floor:.2g})"
    )


def _agreement(checked: Any) -> list[str]:
    """How far estimates are from exact patching, a line a direction."""
    return [
        f"{name}: Spearman {one['spearman']:.2f} over {one['patched']} cells patched exactly"
        for name, one in (checked or {}).items()
        if one.get("spearman") is not None
    ]
