"""Search the settings of the planted backend. A program, for a server of processes keeps the plug-ins of its start.

LENSING_BENCH_BACKENDS=tests.bench.planted.tunable python -m tests.bench.tune_planted STORE LIMIT OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench import interleave
from bench.job import Job
from bench.json_lines import append_line
from bench.measure import BlockPlan
from bench.process import Oversight
from bench.tune import tune
from tests.bench.conftest import make_case


def main(store: str, limit: str, out: str) -> None:
    interleave.FOREIGN_LIMIT = float(limit)
    job = Job(
        case=make_case(backend="planted_tunable", threads=1, variant="tuned"),
        checkpoint=None,
        store=Path(store),
        workdir=Path(out).parent / "artifacts",
        reference=None,
        outputs=Path(out).parent / "outputs.npy",
        plan=BlockPlan(block_s=0.05, calls=3, discards=1, warmup_s=0.2),
    )
    append_line(Path(out), tune(job, Oversight(stage_s=60.0), lambda text: None))


if __name__ == "__main__":
    main(*sys.argv[1:])
