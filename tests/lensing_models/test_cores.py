import os
from pathlib import Path

import pytest

from lensing_models.cores import usable_cores

HERE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("100000 100000", 1), ("50000 100000", 1), ("190000 100000", 1), ("9900000 100000", HERE), ("max 100000", HERE)],
)
def test_whole_cores_of_a_quota_count(tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")

    assert usable_cores(tmp_path / "cpu.max") == cores


def test_without_a_control_group_all_cores_count(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "nothing") == HERE
