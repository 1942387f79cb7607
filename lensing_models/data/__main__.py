"""``python -m lensing_models.data``: simulate or import a data set, verify it, show it, say what is in it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lensing_models.command_line import Parser, run_main
from lensing_models.data import simulate
from lensing_models.data.contact_sheet import save_contact_sheet
from lensing_models.data.import_command import add_import_parser, run_import
from lensing_models.data.store import Store, open_store, verify_store
from lensing_models.preset import Split
from lensing_models.progress import ProgressLine
from lensing_models.registry import find_task
from lensing_models.tasks import known_tasks


def main(argv: Sequence[str]) -> int:
    """Run one command; return 0, or 1 if a store is broken."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "simulate":
        print(_describe(_simulate(arguments)))
        return 0
    if arguments.command == "show":
        if arguments.out.suffix != ".png":
            raise ValueError(f"--out {arguments.out}: give a name that ends in .png")
        save_contact_sheet(open_store(arguments.folder), arguments.out)
        print(arguments.out)
        return 0
    if arguments.command == "import":
        print(_describe(run_import(arguments)))
        return 0
    if not arguments.folder.is_dir():
        raise ValueError(f"no folder {arguments.folder}; make it: python -m lensing_models.data simulate --out ...")
    check = verify_store if arguments.command == "verify" else open_store
    try:
        store = check(arguments.folder)
    except ValueError as error:
        print(f"broken: {error}", file=sys.stderr)
        return 1
    print(f"{store.folder}: intact" if arguments.command == "verify" else _describe(store))
    return 0


def _parser() -> Parser:
    parser = Parser(prog="python -m lensing_models.data", description="Make, verify and describe data sets.")
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("simulate", help="simulate a data set")
    make.add_argument("--task", required=True, help=f"what the labels answer: {', '.join(known_tasks())}")
    make.add_argument("--sky", help=f"physics to draw from: {', '.join(simulate.SOURCES)} (default: the task's own)")
    for split in ("train", "validation", "test"):
        make.add_argument(f"--{split}", type=int, default=0, metavar="N", help=f"{split} images (default: none)")
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--workers", type=int, default=1, help="processes; the images do not depend on it")
    make.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to make them (default: cpu)")
    make.add_argument("--resume", action="store_true", help="complete what a killed call with the same options left")
    make.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    add_import_parser(commands)
    for name, what in (("verify", "read every byte of a data set and compare digests"), ("info", "say what is in one")):
        commands.add_parser(name, help=what).add_argument("folder", type=Path, metavar="DIR")
    show = commands.add_parser("show", help="draw some images of each class with their parameters")
    show.add_argument("folder", type=Path, metavar="DIR")
    show.add_argument("--out", type=Path, required=True, metavar="PNG", help="picture to write")
    return parser


def _simulate(arguments: argparse.Namespace) -> Store:
    task = find_task(arguments.task)
    split = Split(train=arguments.train, validation=arguments.validation, test=arguments.test)
    with ProgressLine(f"simulate {task.name}", split.train + split.validation + split.test) as line:
        return simulate.simulate_dataset(
            task,
            split,
            arguments.out,
            sky=arguments.sky,
            seed=arguments.seed,
            workers=arguments.workers,
            device=arguments.device,
            resume=arguments.resume,
            progress=lambda done, total: line.reach(done),
        )


def _describe(store: Store) -> str:
    """Return a few lines: where, what, how many, and how the labels are distributed."""
    recipe, catalog = store.manifest.recipe, store.catalog
    sizes = ", ".join(f"{size} {split}" for split, size in recipe.sizes.items())
    classes = ", ".join(f"{size} {name}" for name, size in catalog["class"].value_counts(sort=False).items())
    lines = [
        f"{store.folder}: {recipe.task}, sky {recipe.sky}, seed {recipe.seed}",
        f"images: {sizes}; {classes}",
        f"recipe {store.recipe_digest[:12]}, content {store.manifest.content_sha256[:12]}",
    ]
    if "mass_fraction" in catalog and "sphere" in set(catalog["class"]):
        fraction = catalog.loc[catalog["class"] == "sphere", "mass_fraction"]
        lines.append(f"mass in subhalos: mean {fraction.mean():.4f}, sd {fraction.std(ddof=0):.4f} of the halo")
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)
