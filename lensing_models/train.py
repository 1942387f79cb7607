"""Fit networks: python -m lensing_models.train --models all --tasks all --preset quick --out DIR."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lensing_models.checkpoint import Card, checkpoint_path, verify_checkpoint, write_checkpoint
from lensing_models.command_line import Parser, run_main
from lensing_models.curve import save_curve
from lensing_models.data.find import CACHE, find_store
from lensing_models.preset import PRESETS
from lensing_models.registry import select_pairs


def kept_card(
    path: Path, recipe_digest: str, preset: str, seed: int, pretrained: bool = False
) -> tuple[Card | None, str]:
    """Return the card of a checkpoint that need not be fitted again, or None and the reason why.

    Args:
        path: Where the checkpoint would lie.
        recipe_digest: Data set that it must have been fitted on.
        preset: Size of work that it must have.
        seed: Seed that it must have.
        pretrained: Whether it must have started from timm's weights.
    """
    if not path.exists():
        return None, "not there yet"
    try:
        card = verify_checkpoint(path)
    except ValueError as error:
        return None, str(error)
    wanted = {"recipe_digest": recipe_digest, "preset": preset, "seed": seed, "pretrained": pretrained}
    differing = [name for name, value in wanted.items() if getattr(card, name) != value]
    return (None, f"another {' and '.join(differing)}") if differing else (card, "")


def render_line(card: Card, path: Path, fitted: bool) -> str:
    """Return one line: the network, its test metrics, and whether it is converged, new or kept."""
    metrics = "  ".join(f"{name} {value:.4g}" for name, value in card.test.items())
    state = f"{'converged' if card.converged else 'unconverged'}, {'fitted' if fitted else 'kept'}"
    return f"{card.task}/{card.architecture}: {metrics}  ({state}; {card.scored_images['test']} test images)  {path}"


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="lensing_models.train", description="Fit networks and write their checkpoints.")
    parser.add_argument("--models", default="all", help="comma list, or all: the published pairs")
    parser.add_argument("--tasks", default="all", help="comma list, or all: the published pairs")
    parser.add_argument(
        "--data", type=Path, help=f"a data set, or a folder of one for each task; made in {CACHE} if absent"
    )
    parser.add_argument("--preset", choices=tuple(PRESETS), default="quick", help="size of work (default: quick)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights, the shuffling and the augmentation")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default: all cores)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--time-budget", type=float, metavar="S", help="seconds to which each fit's epochs are cut")
    parser.add_argument("--resume", action="store_true", help="go on with fits that were killed")
    parser.add_argument(
        "--pretrained",
        nargs="?",
        const=True,
        default=False,
        metavar="FILE",
        help="start from timm's weights for colour images, from its hub or a file",
    )
    parser.add_argument("--refit", action="store_true", help="fit again what --out already holds")
    return parser


def main(argv: Sequence[str]) -> int:
    """Fit what *argv* names and print a line of test metrics for each network."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.time_budget is not None and not arguments.time_budget > 0:
        parser.error(f"--time-budget {arguments.time_budget:g}: give a positive number of seconds")
    if arguments.threads < 1 or arguments.seed < 0:
        parser.error(f"--threads {arguments.threads} --seed {arguments.seed}: threads start at 1, seeds at 0")
    pairs = select_pairs(arguments.models, arguments.tasks)
    if isinstance(arguments.pretrained, str) and len({architecture.name for _, architecture in pairs}) > 1:
        parser.error(f"--pretrained {arguments.pretrained}: one file is of one network; name it with --models")
    preset = PRESETS[arguments.preset]
    tasks = {task.name: task for task, _ in pairs}
    stores = {name: find_store(task, arguments.data, preset) for name, task in tasks.items()}
    lines = []
    for task, architecture in pairs:
        path = checkpoint_path(arguments.out, task.name, architecture.name)
        card, why = kept_card(
            path, stores[task.name].recipe_digest, preset.name, arguments.seed, bool(arguments.pretrained)
        )
        fitted = card is None or arguments.refit
        if fitted:
            print(f"{path}: {'--refit' if arguments.refit else why}; fitting", file=sys.stderr)
            from lensing_models.fit import fit  # torch and Lightning take seconds; wrong arguments and kept files none

            folder = path.with_suffix(".fit")
            network, card = fit(
                task,
                architecture,
                stores[task.name],
                preset=preset,
                seed=arguments.seed,
                threads=arguments.threads,
                device=arguments.device,
                folder=folder,
                resume=arguments.resume,
                time_budget_s=arguments.time_budget,
                pretrained=bool(arguments.pretrained),
                weights=Path(arguments.pretrained) if isinstance(arguments.pretrained, str) else None,
            )
            path = write_checkpoint(network, arguments.out, card)
            save_curve(folder, task.primary_metric, f"{task.name}/{architecture.name}, preset {preset.name}")
        assert card is not None
        lines.append(render_line(card, path, fitted))
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    run_main(main)
