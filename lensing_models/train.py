"""Fit networks: python -m lensing_models.train --models all --tasks all --preset quick --out DIR."""

from __future__ import annotations

import dataclasses
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from lensing_models.checkpoint import Card, checkpoint_path, read_card, verify_checkpoint, write_checkpoint
from lensing_models.command_line import Parser, run_main
from lensing_models.cores import usable_cores
from lensing_models.data.find import CACHE, choose_tasks, find_store
from lensing_models.job import LAST, Job
from lensing_models.preset import PRESETS
from lensing_models.registry import select_pairs
from lensing_models.specs import ArchitectureSpec, TaskSpec

if TYPE_CHECKING:
    from lensing_models.cluster import Cluster


#: Begins the reason why an intact checkpoint is not that of a job.
OTHER = "another "


def fit_folder(path: Path) -> Path:
    """Return where the state, the logs and the learning curve of the fit of the checkpoint *path* lie."""
    return path.with_suffix(".fit")


def kept_card(path: Path, job: Job, *, whole: bool = False) -> tuple[Card | None, str]:
    """Return the card of a checkpoint that need not be fitted again, or None and the reason why.

    Args:
        path: Where the checkpoint would lie.
        job: What it must have been fitted as: data, preset, seed, first weights, loss, teacher, stream.
        whole: Whether a fit that a time budget cut short is not enough.
    """
    if not path.exists():
        return None, "not there yet"
    try:
        card = verify_checkpoint(path)
    except ValueError as error:
        return None, str(error)
    if whole and not card.converged and not job.preset.step_capped:
        return None, "a time budget cut it short"
    wanted = dataclasses.asdict(job.identity())
    differing = [name for name, value in wanted.items() if getattr(card, name) != value]
    return (None, f"{OTHER}{' and '.join(differing)}") if differing else (card, "")


def refuse_to_replace(path: Path, job: Job, arguments: Namespace) -> None:
    """Raise ValueError where a fit of *job* would cost somebody's work that *path*, or the fit beside it, holds."""
    folder = fit_folder(path)
    if is_begun := (folder / LAST).exists():
        kept, _ = kept_card(path, job, whole=arguments.time_budget is None)
        if not kept and not arguments.resume:
            raise ValueError(f"{folder} holds a fit that was not finished: --resume goes on, --refit begins it anew")
    kept, why = kept_card(path, job)
    # One that was begun has asked for this already.
    if not kept and why.startswith(OTHER) and not (is_begun and arguments.resume):
        raise ValueError(f"{path} is there, of {why}: --refit replaces it, or choose another --out")


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
        if not arguments.refit:
            refuse_to_replace(checkpoint_path(arguments.out, job.task.name, job.architecture.label), job, arguments)
    for job in jobs:
        if line := fit_one(job, arguments, cluster):
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


def fit_one(job: Job, arguments: Namespace, cluster: Cluster | None) -> str:
    """Fit *job* unless its checkpoint is kept, and return the line to print; none where another process does.

    Args:
        job: What is fitted.
        arguments: Of the command line.
        cluster: The processes that fit together; None for one alone.
    """
    path = checkpoint_path(arguments.out, job.task.name, job.architecture.label)
    speaks = cluster is None or cluster.rank == 0
    whole = arguments.time_budget is None
    kept, why = (
        cluster.decide(lambda: kept_card(path, job, whole=whole)) if cluster else kept_card(path, job, whole=whole)
    )
    if kept and not arguments.refit:
        return render_line(kept, path, fitted=False) if speaks else ""
    # torch and Lightning take seconds; wrong arguments and kept files none.
    from lensing_models.curve import save_curve
    from lensing_models.fit import fit
    from lensing_models.fit_plan import drop_state

    folder = fit_folder(path)
    if speaks:
        print(f"{path}: {'--refit' if kept else why}; fitting", file=sys.stderr)
    with ExitStack() as stack:

        def hold_folder() -> bool:
            return stack.enter_context(hold(folder, wait=cluster is None))

        if cluster.decide(hold_folder) if cluster else hold_folder():
            # Another process was at it, and may have fitted the same.
            kept, _ = kept_card(path, job, whole=whole)
            if kept:
                return render_line(kept, path, fitted=False)
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

        line = cluster.decide(keep) if cluster else keep()
    return line if speaks else ""


@contextmanager
def hold(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Keep other processes from fitting into *folder* meanwhile; yield whether one was at it and was waited for.

    Raises:
        ValueError: If one is, and is not to be waited for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, waited = FileLock(folder / ".lock"), False
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if not wait:
            raise ValueError(f"{folder}: another process is fitting into it; choose another --out") from error
        print(f"{folder}: another process is fitting into it; waiting", file=sys.stderr)
        waited = True
        lock.acquire()
    try:
        yield waited
    finally:
        lock.release()


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
