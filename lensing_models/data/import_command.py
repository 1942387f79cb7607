"""``python -m lensing_models.data import``: make a data set of a published archive."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

from lensing_models.command_line import Parser
from lensing_models.data.importing import find_kind, find_kinds_task, import_archive, known_kinds
from lensing_models.data.partition import SPLITS
from lensing_models.data.store import Store
from lensing_models.progress import ProgressLine


def add_import_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command ``import`` to *commands*."""
    parser = commands.add_parser("import", help="import a published archive, as downloaded")
    parser.add_argument("kind", metavar="KIND", help=", ".join(known_kinds()))
    parser.add_argument("path", type=Path, metavar="PATH", help="folder, .zip, .tar.gz or .tgz; for fits also a cube")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--task", metavar="T", help="what the labels answer (default: the kind's)")
    parser.add_argument("--labels", type=Path, metavar="CSV", help="table of labels, where it is not in the archive")
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=int, metavar="N", help=f"{split} images (default: as published)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the splits")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad files out and list them")


def run_import(arguments: argparse.Namespace) -> Store:
    """Import what *arguments* say, with progress on stderr."""
    kind = find_kind(arguments.kind)
    task = find_kinds_task(kind, arguments.task)
    sizes = {split: getattr(arguments, split) for split in SPLITS if getattr(arguments, split) is not None}
    with ExitStack() as stack:
        lines: dict[str, ProgressLine] = {}

        def tell(what: str, done: int, total: int | None) -> None:
            if what not in lines:
                stack.close()  # a terminal shows one bar at a time
                lines[what] = stack.enter_context(ProgressLine(f"{what} {kind.name}", total))
            lines[what].reach(done)

        return import_archive(
            kind,
            arguments.path,
            task,
            arguments.out,
            seed=arguments.seed,
            sizes=sizes,
            labels=arguments.labels,
            skip_bad=arguments.skip_bad,
            progress=tell,
        )
