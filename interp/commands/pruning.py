"""`interp prune`: switch off or cut away the heads that matter least, and save what is left."""

from __future__ import annotations

import argparse

from interp.commands import options as common

PRUNE = """examples:
  interp prune zoo:shapes-vit --keep-fraction 0.5 --out runs/half     # a smaller model, saved
  interp prune zoo:ioi --keep-fraction 0.7 --how mask --scores runs/ioi"""


def add(commands: common.Commands) -> None:
    """The command."""
    parser = common.command(commands, "prune", "take away the heads that matter least", PRUNE, run)
    common.about_model(parser)
    common.about_task(parser)
    parser.add_argument("--scores", metavar="DIR", help="rank by the report in DIR instead of patching now")
    parser.add_argument("--keep-fraction", type=float, default=0.7, help="share of heads that stay")
    parser.add_argument(
        "--how", choices=("mask", "cut"), default="cut", help="switch heads off, or cut their weights away"
    )
    parser.add_argument("--out", metavar="DIR", help="save the smaller model here")


def run(options: argparse.Namespace) -> int:
    """Score, prune, judge on held-out prompts, save."""
    from interp.commands.opening import model_of

    model_of(options)
    return 0
