"""Fit networks: python -m lensing_models.train --models all --tasks all --preset quick --out DIR."""

from __future__ import annotations

import dataclasses
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lensing_models.checkpoint import Card, checkpoint_path, read_card, verify_checkpoint, write_checkpoint
from lensing_models.command_line import Parser, run_main
from lensing_models.cores import usable_cores
from lensing_models.data.find import CACHE, choose_tasks, find_store
from lensing_models.job import Job
from lensing_models.preset import PRESETS
from lensing_models.registry import select_pairs
from lensing_models.specs import ArchitectureSpec, TaskSpec
from lensing_models.train_claim import fit_folder, hold, is_held, kept_card, read_stamp, refuse_to_replace

if TYPE_CHECKING:
    from lensing_models.cluster import Cluster

T = TypeVar("T")


def earlier_test_uses(path: Path, recipe_digest: str) -> int:
    """Return how often the test split of these data was scored for the checkpoint that *path* holds now."""
    try:
        card = read_card(path)
    except ValueError:
        return 0
    return card.test_uses if card.recipe_digest == recipe_digest else 0


def render_line(card: Card, path: Path, fitted: bool) -> str:
    """Return one line: the network, its test metrics, and whether it is converged, new or kept."""
    metrics = "  ".join(f"{name} {value:.4g}" for name, value in card.test.items())
    state = f"{card.state}, {'fitted' if fitted else 'kept'}"
    return f"{card.task}/{card.architecture}: {metrics}  ({state}; {card.scored_images['test']} test images)  {path}"


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="lensing_models.train", description="Fit networks and write their checkpoints.")
    parser.add_argument(
        "--models", default="all", help="comma list, or all: the published pairs; TASK/MODEL for one pair"
    )
    parser.add_argument(
        "--tasks", help="comma list, or all: the published pairs; default: that of the only set of --data, else all"
    )
    parser.add_argument(
        "--data", type=Path, help=f"a data set, or a folder of one for each task; made in {CACHE} if absent"
    )
    parser.add_argument("--preset", choices=tuple(PRESETS), default="quick", help="size of work (default: quick)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights, the shuffling and the augmentation")
    parser.add_argument("--threads", type=int, help="CPU threads of a process (default: all cores)")
    parser.add_argument("--workers", type=int, help="processes that make batches ahead (default: as many as pay)")
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
    parser.add_argument("--start", type=Path, metavar="CHECKPOINT", help="start from its weights, but for the head")
    parser.add_argument("--teacher", type=Path, metavar="CHECKPOINT", help="imitate this network's answers as well")
    parser.add_argument("--stream", action="store_true", help="simulate new images for each epoch after the first")
    parser.add_argument("--focal-gamma", type=float, metavar="G", help="focus of the loss; 0: cross entropy")
    parser.add_argument("--balance", type=float, metavar="P", help="power of the inverse class share in the loss")
    parser.add_argument("--refit", action="store_true", help="fit again what --out already holds, of whatever fit")
    return parser


def with_loss(task: TaskSpec, focal_gamma: float | None, balance: float | None) -> TaskSpec:
    """Return *task* with another focus or balance of its loss, where one is given.

    Raises:
        ValueError: If it has no classes, or a number is negative.
    """
    return dataclasses.replace(
        task,
        focal_gamma=task.focal_gamma if focal_gamma is None else focal_gamma,
        balance=task.balance if balance is None else balance,
    )


def check_arguments(parser: Parser, arguments: Namespace) -> None:
    """End with one line where a number makes no sense."""
    if arguments.time_budget is not None and not arguments.time_budget > 0:
        parser.error(f"--time-budget {arguments.time_budget:g}: give a positive number of seconds")
    if (arguments.threads is not None and arguments.threads < 1) or arguments.seed < 0:
        parser.error(f"--threads {arguments.threads} --seed {arguments.seed}: threads start at 1, seeds at 0")
    if arguments.workers is not None and arguments.workers < 0:
        parser.error(f"--workers {arguments.workers}: give 0 or more")


def main(argv: Sequence[str]) -> int:
    """Fit what *argv* names and print a line of test metrics for each network."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    check_arguments(parser, arguments)
    pairs = select_pairs(arguments.models, choose_tasks(arguments.tasks, arguments.models, arguments.data))
    weights = arguments.pretrained if isinstance(arguments.pretrained, str) else None
    if weights and len({architecture.label for _, architecture in pairs}) > 1:
        parser.error(f"--pretrained {weights}: one file is of one network; name it with --models")
    if arguments.start and (arguments.pretrained or len({architecture.name for _, architecture in pairs}) > 1):
        parser.error(f"--start {arguments.start}: it is of one network; name that with --models, without --pretrained")
    if arguments.teacher:
        taught = verify_checkpoint(arguments.teacher).task
        if {task.name for task, _ in pairs} != {taught}:
            parser.error(f"--teacher {arguments.teacher}: it answers {taught}; choose that with --tasks")
    jobs = make_jobs(arguments, pairs)
    cluster = _cluster(arguments.device)
    for job in jobs:  # all of them, before the first takes hours
        job.check(cluster.processes if cluster else 1)
    found = decide(cluster, lambda: [find_kept(job, arguments) for job in jobs])
    for job, kept in zip(jobs, found, strict=True):
        line = render_line(kept, path_of(job, arguments), fitted=False) if kept else fit_one(job, arguments, cluster)
        if cluster is None or cluster.rank == 0:
            print(line, flush=True)
    return 0


def make_jobs(arguments: Namespace, pairs: Sequence[tuple[TaskSpec, ArchitectureSpec]]) -> list[Job]:
    """Return what is to be fitted; a mistake in any of it is found before the first fit.

    Raises:
        ValueError: If a data set, a checkpoint or a loss does not fit its task.
    """
    preset = PRESETS[arguments.preset]
    tasks = {task.name: with_loss(task, arguments.focal_gamma, arguments.balance) for task, _ in pairs}
    if arguments.start:
        verify_checkpoint(arguments.start)  # before data are simulated
    stores = {name: find_store(task, arguments.data, preset) for name, task in tasks.items()}
    if arguments.stream:
        from lensing_models.data.supply import FreshImages

        for store in stores.values():
            FreshImages(store)
    return [
        Job(
            task=tasks[task.name],
            architecture=architecture,
            store=stores[task.name],
            preset=preset,
            seed=arguments.seed,
            pretrained=bool(arguments.pretrained),
            weights=Path(arguments.pretrained) if isinstance(arguments.pretrained, str) else None,
            start=arguments.start,
            teacher=arguments.teacher,
            stream=arguments.stream,
        )
        for task, architecture in pairs
    ]


def find_kept(job: Job, arguments: Namespace) -> Card | None:
    """Return the card of the checkpoint of *job* if it is kept, or None if it is to be fitted.

    Raises:
        ValueError: If the fit would cost somebody's work. Where another process is fitting
            there, what it leaves is looked at when it is done: see `claim`.
    """
    if arguments.refit:
        return None
    try:
        return kept_or_refused(job, arguments)[0]
    except ValueError:
        if is_held(fit_folder(path_of(job, arguments))):
            return None
        # Another process may have finished since we looked.
        return kept_or_refused(job, arguments)[0]


def kept_or_refused(job: Job, arguments: Namespace) -> tuple[Card | None, str]:
    """Return the card of the checkpoint of *job* if it is kept, or None and why it is to be fitted.

    Raises:
        ValueError: If the fit would cost somebody's work, and ``--refit`` does not say that it may.
    """
    path = path_of(job, arguments)
    kept, why = kept_card(path, job, whole=arguments.time_budget is None)
    if not kept and not arguments.refit:
        refuse_to_replace(path, why, resume=arguments.resume)
    return kept, why


def claim(job: Job, arguments: Namespace, stack: ExitStack, *, wait: bool) -> tuple[Card | None, str]:
    """Keep other processes out while *stack* lasts; return the card of what one has fitted meanwhile, or why to fit.

    Args:
        job: What is to be fitted.
        arguments: Of the command line.
        stack: Is given the hold on the folder of the fit.
        wait: Whether to wait for a process that is at it, or to raise ValueError.

    Raises:
        ValueError: If the fit would cost somebody's work: that of a process which was interrupted, say.
    """
    path = path_of(job, arguments)
    before = read_stamp(path)
    stack.enter_context(hold(fit_folder(path), wait=wait))
    if arguments.refit and read_stamp(path) == before:
        return None, "--refit" if path.exists() else "not there yet"
    return kept_or_refused(job, arguments)


def fit_one(job: Job, arguments: Namespace, cluster: Cluster | None) -> str:
    """Fit *job*, unless another process has done so meanwhile, and return the line to print.

    Args:
        job: What is fitted.
        arguments: Of the command line.
        cluster: The processes that fit together; None for one alone.
    """
    path = path_of(job, arguments)
    folder = fit_folder(path)
    with ExitStack() as stack:
        kept, why = decide(cluster, lambda: claim(job, arguments, stack, wait=cluster is None))
        if kept:
            return render_line(kept, path, fitted=False)
        if cluster is None or cluster.rank == 0:
            print(f"{path}: {why}; fitting", file=sys.stderr)
        # torch and Lightning take seconds; wrong arguments and kept files none.
        from lensing_models.curve import save_curve
        from lensing_models.fit import fit
        from lensing_models.fit_plan import drop_state

        network, card = fit(
            job,
            threads=arguments.threads or default_threads(cluster),
            device=arguments.device,
            workers=arguments.workers,
            folder=folder,
            resume=arguments.resume,
            time_budget_s=arguments.time_budget,
        )

        def keep() -> str:
            uses = 1 + earlier_test_uses(path, card.recipe_digest)
            write_checkpoint(network, arguments.out, dataclasses.replace(card, test_uses=uses))
            drop_state(folder)  # that of a finished fit is of no use, and large
            save_curve(folder, job.task.primary_metric, f"{job.name}, preset {job.preset.name}")
            return render_line(card, path, fitted=True)

        return decide(cluster, keep)


def path_of(job: Job, arguments: Namespace) -> Path:
    """Return where the checkpoint of *job* is to lie."""
    return checkpoint_path(arguments.out, job.task.name, job.architecture.label)


def decide(cluster: Cluster | None, work: Callable[[], T]) -> T:
    """Return what *work* gives; of several processes, what it gives on the first: see `Cluster.decide`."""
    return cluster.decide(work) if cluster else work()


def default_threads(cluster: Cluster | None) -> int:
    """Return the cores that fall to a process."""
    return max(1, usable_cores() // (cluster.processes_a_node if cluster else 1))


def _cluster(device: str) -> Cluster | None:
    """Return the processes that fit together; None for one alone, without importing Lightning."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return None
    from lensing_models.cluster import find_device, join_cluster

    cluster = join_cluster(find_device(device))
    return cluster if cluster.processes > 1 else None


if __name__ == "__main__":
    run_main(main)
