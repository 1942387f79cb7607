"""The main job: argv -> plan -> records -> report (``python -m bench.run``)."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.backends import known_backends
from bench.backends.base import has_nvidia_driver
from bench.margin import parse_margins
from bench.plan import Sweep, expand_sweep, resolve_builds, resolve_threads
from bench.scenario import suits
from lensing_models.command_line import Parser, run_main
from lensing_models.data.find import choose_tasks
from lensing_models.preset import PRESETS, Preset


def main() -> None:
    """Run the command line and exit with its code: 0 fine, 1 a case failed, 2 bad arguments, 3 no valid row."""
    run_main(run)


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="python -m bench.run",
        description="Measure what each network costs and what it is worth, through every runtime.",
    )
    add = parser.add_argument
    add(
        "--models",
        default="all",
        help="comma list of networks, or all (the published pairs); TASK/MODEL means that pair alone",
    )
    add("--tasks", help="comma list of tasks, or all; default: that of the only set of --data, else all")
    add("--backends", help="comma list, or all; default: all but those that compile for minutes (inductor, aoti)")
    add("--precisions", help="comma list, or all (each backend's own); default: fp32 and the device's half precision")
    add("--variants", help="comma list of runtime variants, or all; default: all but optimized and tuned")
    add("--tune", action="store_true", help="search the fastest settings of each runtime; a row beside the default one")
    add("--batch-sizes", default="1,32", help="comma list, or all (1, 8, 32, 128); default: 1,32")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: cuda where there is one")
    add("--preset", default="quick", choices=sorted(PRESETS), help="sizes of data, fit and measurement")
    add("--data", type=Path, help="a data set, or a folder with one a task; default: simulated")
    add("--checkpoints", type=Path, help="folder of checkpoints; a missing one is fitted into it")
    add("--out", type=Path, help="folder of the run; default: results/<date>-<device>-<versions>")
    add(
        "--resume",
        action="store_true",
        help="complete the run in --out as it was begun; nothing is measured twice",
    )
    add("--retry-contended", action="store_true", help="with --resume: measure what other work spoilt once more")
    add("--strict", action="store_true", help="exit with 1 if a case is skipped")
    add("--list", action="store_true", help="print the plan and stop")
    add("--verify", action="store_true", help="check every case once, untimed")
    add("--time-budget", type=float, metavar="S", help="seconds of timed calls a case; default: the preset's")
    add("--target-ci", type=float, default=0.01, metavar="R", help="relative half-width that ends a case; default 0.01")
    add(
        "--processes",
        type=int,
        metavar="N",
        help="processes that time a case, one after the other; default: the preset's",
    )
    add("--builds", type=int, metavar="K", help="builds of each TensorRT engine to time; default: the preset's")
    add("--margin", default="", metavar="LIST", help="harm that drift may do; accuracy=0.005,auc=0.002,mse=0.02")
    add("--case-timeout", type=float, metavar="S", help="seconds a stage of a case may take; default: the preset's")
    add("--memory-limit", type=float, metavar="GIB", help="memory a worker may use; default: 85 %% of what is free")
    add("--find-largest-batch", action="store_true", help="double the batch until a runtime runs out of memory")
    add(
        "--scenarios", default="", help="comma list of kinds of arrivals, or all, for each measured case; default: none"
    )
    add("--p99-ms", type=float, metavar="MS", help="bound of scenario server; default: 5 x the case's p50, rounded up")
    add("--threads", type=int, help="CPU threads of every runtime; default: all cores")
    return parser


def run(argv: Sequence[str]) -> int:
    """Carry out the command line *argv* and return the exit code."""
    options = parse_options(argv)
    check_numbers(options)
    device = resolve_device(options.device, listing=options.list)
    threads = resolve_threads(options.threads)
    # Kept with the run: what lies in --data may have changed when it is resumed.
    options.tasks = choose_tasks(options.tasks, options.models, options.data)
    sweep = expand_sweep(
        models=options.models,
        tasks=options.tasks,
        backends=options.backends,
        precisions=options.precisions,
        batch_sizes=options.batch_sizes,
        device=device,
        threads=threads,
        known=known_backends(),
        scenarios=options.scenarios,
        variants=options.variants,
        tune=options.tune,
    )
    if options.list:
        print_plan(sweep)
        return 0
    return measure_sweep(sweep, options, argv, device, threads)


def parse_options(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options of *argv*; what is not given when a run is resumed is as it was begun."""
    parser = build_parser()
    options = parser.parse_args(argv)
    begun = options.out / "run.json" if options.resume and options.out else None
    if begun and begun.exists():
        parser.set_defaults(**json.loads(begun.read_text(encoding="utf-8")).get("options", {}))
        options = parser.parse_args(argv)
    return options


def kept_options(options: argparse.Namespace) -> dict[str, object]:
    """Return those of *options* that say what a run is, as they stand in ``run.json``."""
    # A run may be verified first and measured then.
    passing = ("out", "resume", "retry_contended", "list", "strict", "verify")
    given = {name: value for name, value in vars(options).items() if value is not None and name not in passing}
    return {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}


def measure_sweep(sweep: Sweep, options: argparse.Namespace, argv: Sequence[str], device: str, threads: int) -> int:
    """Provide, measure and report *sweep*; return the exit code."""
    # Imported late: listing the plan needs none of it.
    from bench.ending import tell
    from bench.environment import describe_environment
    from bench.execute import Execution
    from bench.level import LEVELS, recall, remember
    from bench.measure import utc_now
    from bench.process import Oversight, default_memory_limit
    from bench.provision import CACHE, pair_key, provide
    from bench.report import write_page, write_report
    from bench.run_folder import RunFolder, anchor_medians
    from bench.scenario import EFFORTS, plan_scenarios
    from bench.sizes import choose_sizes
    from bench.timetable import Timetable, add_up

    timetable = Timetable()
    preset: Preset = PRESETS[options.preset]
    # Before any runtime starts its pool: OpenMP reads it once.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    environment = describe_environment(device, threads)
    out = options.out or default_folder(device, environment.versions)
    sizes = choose_sizes(preset, options)
    oversight = Oversight(
        stage_s=options.case_timeout or preset.stage_s,
        memory_bytes=options.memory_limit * 2**30 if options.memory_limit else default_memory_limit(),
        timetable=timetable,
    )
    with RunFolder(out, resume=options.resume) as folder:
        command = f"python -m bench.run {shlex.join(argv)}".strip()
        settings = {"preset": preset.name, "case_s": sizes.limits.case_s, "target_ci": options.target_ci}
        settings |= {"processes": sizes.processes, "builds": sizes.builds, "margin": parse_margins(options.margin)}
        folder.start(environment, settings)
        if options.resume:
            folder.note({"resumed_at": utc_now(), "resumed_by": command})
        else:
            folder.note({"run": out.name, "command": command, "preset": preset.name, "started_at": utc_now()})
            folder.note({"options": kept_options(options)})
            folder.note({"anchor_levels_s": recall(CACHE / LEVELS, environment)})
        folder.note({"stage_s": oversight.stage_s, "memory_bytes": oversight.memory_bytes})
        print(f"run folder: {out}", file=sys.stderr)
        runnable = {(planned.case.task, planned.case.network) for planned in sweep.cases if not planned.skip_reason}
        provision = provide(
            [pair for pair in sweep.pairs if pair_key(pair) in runnable],
            preset=preset,
            data=options.data,
            checkpoints=options.checkpoints,
            device=device,
            threads=threads,
            timetable=timetable,
        )
        fitted_on = {"/".join(pair): card.sky for pair, (_, card) in provision.checkpoints.items()}
        skies = {task: store.sky for task, store in provision.stores.items()}
        folder.note({"skies": skies, "fitted_on": fitted_on})
        execution = Execution(
            folder,
            provision,
            sizes,
            workdir=CACHE / "artifacts",
            fingerprint=environment.fingerprint,
            oversight=oversight,
            retry_contended=options.retry_contended,
        )
        execution.run(sweep.cases)
        if sweep.scenarios:
            p99_s = None if options.p99_ms is None else options.p99_ms / 1e3
            effort = EFFORTS[preset.name]
            execution.run_scenarios(
                sweep.cases, lambda records: plan_scenarios(records, sweep.scenarios, effort, p99_s)
            )
        folder.note({"finished_at": utc_now(), "anchors": anchor_medians(out)})
        begun_at = str(folder.facts().get("started_at", ""))
        remember(CACHE / LEVELS, environment, folder.finished().values(), utc_now(), begun_at=begun_at)
        with timetable.spend("report"):
            write_report(out)
        spent_s = add_up(folder.breakdown_s() if options.resume else {}, timetable.spent_s())
        folder.note({"wall_s": sum(spent_s.values()), "breakdown_s": spent_s})
        # Once more, now that it is known what the report took.
        write_page(out)
    return tell(out, sweep, strict=options.strict)


def print_plan(sweep: Sweep) -> None:
    """Print one line a case: its key, and why it would be skipped or what scenarios it would be driven with."""
    for planned in sweep.cases:
        suited = [name for name in sweep.scenarios if suits(name, planned.case)]
        scenarios = f"  scenarios: {', '.join(suited)}" if suited else ""
        print(planned.case.key + (f"  skipped: {planned.skip_reason}" if planned.skip_reason else scenarios))
    skipped = sum(bool(planned.skip_reason) for planned in sweep.cases)
    print(f"{len(sweep.cases)} cases, {skipped} of them skipped")


def check_numbers(options: argparse.Namespace) -> None:
    """Raise ValueError for a number out of its range, LookupError for one of an unknown name."""
    if options.time_budget is not None and not options.time_budget > 0:
        raise ValueError(f"--time-budget {options.time_budget}: give seconds, more than 0")
    if options.case_timeout is not None and not options.case_timeout > 0:
        raise ValueError(f"--case-timeout {options.case_timeout}: give seconds, more than 0")
    preset = PRESETS[options.preset]
    # What takes its time by design, the energy window and the warm-up, is not to be taken for a hang.
    least_s = 2 * max(preset.energy_s, (options.time_budget or preset.case_s) / 4)
    if (stage_s := options.case_timeout or preset.stage_s) <= least_s:
        raise ValueError(f"--case-timeout {stage_s:g}: the time budget of a case needs more than {least_s:g} s")
    if options.processes is not None and options.processes < 1:
        raise ValueError(f"--processes {options.processes}: give a positive whole number")
    if options.memory_limit is not None and not options.memory_limit > 0:
        raise ValueError(f"--memory-limit {options.memory_limit}: give GiB, more than 0")
    if not 0 < options.target_ci < 1:
        raise ValueError(f"--target-ci {options.target_ci}: give a fraction between 0 and 1, e.g. 0.01")
    if options.p99_ms is not None and not options.p99_ms > 0:
        raise ValueError(f"--p99-ms {options.p99_ms}: give milliseconds, more than 0")
    if options.verify and options.scenarios:
        raise ValueError("--verify times nothing, and --scenarios needs the times; leave one of them out")
    if options.retry_contended and not options.resume:
        raise ValueError("--retry-contended needs --resume: it is of a run that was measured")
    if options.retry_contended and options.verify:
        raise ValueError("--verify times nothing, and --retry-contended measures anew; leave one of them out")
    if options.resume and options.out is None:
        raise ValueError("--resume needs --out, the folder of the run to complete")
    resolve_builds(options.builds, options.processes or preset.processes, preset.builds)
    parse_margins(options.margin)


def resolve_device(device: str, *, listing: bool) -> str:
    """Return ``cpu`` or ``cuda``; a GPU is only looked for where its driver is, and not to list a plan.

    Raises:
        ValueError: If ``cuda`` is asked for and torch finds no GPU.
    """
    if device == "cpu" or (device == "auto" and not has_nvidia_driver()):
        return "cpu"
    if listing:
        return "cuda"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise ValueError("--device cuda: torch finds no usable GPU here; known: cpu")
    reason = "is built without CUDA" if torch.version.cuda is None else f"(CUDA {torch.version.cuda}) can use no GPU"
    print(
        f"There is an NVIDIA driver, but torch {reason}: measured on the CPU (--device cpu says so).", file=sys.stderr
    )
    return "cpu"


def default_folder(device: str, versions: Mapping[str, str]) -> Path:
    """Return ``results/<date>-<device>-<versions>``, with a number behind it if that is taken."""
    from bench.measure import utc_now

    name = f"{utc_now()[:10]}-{device}-torch{versions.get('torch', '')}"
    first = Path("results") / name
    later = (first.with_name(f"{name}-{number}") for number in range(2, 1000))
    return next(path for path in (first, *later) if not path.exists())


if __name__ == "__main__":
    main()
