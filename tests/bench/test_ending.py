"""How a run ends: what its exit code says of failed cases and of other people's work."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.ending import SPOILT, tell
from bench.plan import PlannedCase, Sweep
from tests.bench.sample_run import make_case, make_record, write_run

BACKENDS = ("eager", "onnx", "openvino")


def end_of(folder: Path, *validities: str, failed: bool = False) -> int:
    """Return the exit code of a run whose rows have these *validities*, the last one maybe of a case that failed."""
    cases = [make_case(backend=name) for name in BACKENDS[: len(validities)]]
    records = [make_record(case, validity=validity) for case, validity in zip(cases, validities, strict=True)]
    if failed:
        records[-1] = make_record(cases[-1], status="failed", reason="planted", validity="", timing=None)
    write_run(folder, records)
    return tell(folder, Sweep(pairs=(), cases=tuple(PlannedCase(case=case) for case in cases)), strict=False)


@pytest.mark.parametrize(
    ("validities", "code"),
    [
        (("valid", "contended", "contended"), 0),
        (("contended", "contended"), SPOILT),
        (("contended", "undersampled"), SPOILT),
        (("undersampled", "unstable"), 0),  # no other work was in the way
        (("", ""), 0),  # of --verify
    ],
)
def test_a_run_without_a_valid_row_says_so_where_others_were_in_the_way(
    tmp_path: Path, validities: tuple[str, ...], code: int
) -> None:
    assert end_of(tmp_path / "run", *validities) == code


def test_a_failure_weighs_more_than_contention(tmp_path: Path) -> None:
    assert end_of(tmp_path / "run", "contended", "contended", failed=True) == 1


def test_an_earlier_plan_s_rows_do_not_count(tmp_path: Path) -> None:
    here, elsewhere = make_case(backend="eager"), make_case(backend="onnx")
    write_run(tmp_path / "run", [make_record(here, validity="contended"), make_record(elsewhere)])

    assert tell(tmp_path / "run", Sweep(pairs=(), cases=(PlannedCase(case=here),)), strict=False) == SPOILT
