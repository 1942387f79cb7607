"""Processes that fit together: found in the environment, and the same fit as one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lensing_models.checkpoint import read_card
from lensing_models.cluster import join_cluster, started_processes
from lensing_models.curve import read_log
from lensing_models.data.simulate import simulate_dataset
from lensing_models.loop import synchronised
from lensing_models.preset import Split
from lensing_models.registry import find_architecture, find_task

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SLURM = {"SLURM_JOB_NAME": "fit", "SLURM_JOB_ID": "1", "SLURM_NTASKS": "6", "SLURM_NNODES": "3"}
STEP = {"SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "3"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (1, 1)),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, (2, 8)),
        ({**SLURM, **STEP}, (3, 6)),
        (SLURM, (1, 1)),  # an allocation of six tasks, but no srun
        ({**SLURM, **STEP, "SLURM_JOB_NAME": "bash"}, (1, 1)),  # an interactive shell
    ],
)
def test_processes_are_found_in_the_environment(
    environment: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert started_processes() == expected


def test_tasks_that_are_spread_unevenly_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SLURM, "SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_NUM_NODES": "2"}.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(ValueError, match="5 tasks on 2 nodes"):
        join_cluster("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "substructure"
    return simulate_dataset(find_task("substructure"), Split(train=36, validation=7, test=3), folder).folder


def test_two_processes_with_frozen_batch_norm_fit_as_one(data: Path, tmp_path: Path) -> None:
    program = ["-m", "tests.lensing_models.fit_together"]
    subprocess.run([sys.executable, *program, str(tmp_path / "one"), str(data)], check=True)
    subprocess.run([*TORCHRUN, *program, str(tmp_path / "two"), str(data)], check=True)

    alone = torch.load(tmp_path / "one" / "found_0.pt")
    first, second = (torch.load(tmp_path / "two" / f"found_{rank}.pt") for rank in range(2))

    for own, ours, theirs in zip(alone["gradients"], first["gradients"], second["gradients"], strict=True):
        assert torch.equal(ours, theirs)
        torch.testing.assert_close(ours, own, rtol=0, atol=1e-4 * float(own.abs().max()) + 1e-9)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first["weights"], second["weights"], strict=True))
    curve, curve_alone = (read_log(tmp_path / name) for name in ("two", "one"))
    np.testing.assert_allclose(curve["loss"].dropna(), curve_alone["loss"].dropna(), rtol=1e-4)
    # Not the AUC: of seven images it jumps when two that are nearly tied change places.
    judged, judged_alone = (log["validation_log_loss"].dropna() for log in (curve, curve_alone))
    np.testing.assert_allclose(judged, judged_alone, rtol=1e-3)


def test_every_process_of_a_capped_fit_returns_one_network(data: Path, tmp_path: Path) -> None:
    subprocess.run([*TORCHRUN, "-m", "tests.lensing_models.fit_capped", str(tmp_path), str(data)], check=True)

    first, second = (torch.load(tmp_path / f"network_{rank}.pt") for rank in range(2))

    assert any(name.endswith("running_var") for name in first)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_a_copy_with_synchronised_batch_norm_is_the_same_network() -> None:
    torch.manual_seed(0)
    network = find_architecture("mobilenetv3_small").build(find_task("substructure"))
    images = torch.rand(2, 1, 150, 150)

    copied = synchronised(network)

    assert any(isinstance(module, nn.SyncBatchNorm) for module in copied.modules())
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())
    with torch.inference_mode():
        assert torch.equal(copied(images), network(images))
    network.load_state_dict(copied.state_dict())


def test_a_mistake_on_the_first_process_ends_all_with_its_line(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    arguments = ["--models", "mobilenetv3_small", "--tasks", "substructure", "--data", str(data)]
    arguments += ["--preset", "quick", "--device", "cpu", "--out", str(tmp_path / "file")]

    answer = subprocess.run(
        [*TORCHRUN, "-m", "lensing_models.train", *arguments], check=False, capture_output=True, text=True, timeout=120
    )

    assert answer.returncode != 0
    assert "error: " in answer.stderr
    assert "in <module>\n    run_main(main)" not in answer.stderr  # no traceback of ours


def test_two_processes_write_one_checkpoint(data: Path, tmp_path: Path) -> None:
    arguments = ["--models", "mobilenetv3_small", "--tasks", "substructure", "--data", str(data)]
    arguments += ["--preset", "quick", "--threads", "1", "--device", "cpu", "--out", str(tmp_path)]

    answer = subprocess.run(
        [*TORCHRUN, "-m", "lensing_models.train", *arguments], check=True, capture_output=True, text=True
    )

    card = read_card(tmp_path / "substructure-mobilenetv3_small.safetensors")
    assert card.processes == 2
    assert answer.stdout.count("substructure/mobilenetv3_small: auc") == 1
    assert answer.stderr.count("; fitting") == 1
