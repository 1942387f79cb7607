"""The whole way by the command line, on a network with random weights and 40 test images."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.ending import SPOILT
from bench.json_lines import read_lines
from bench.knob import Tuning
from bench.machine_facts import read_ceilings
from bench.records import RunRecord
from bench.scenario_record import ScenarioRecord
from bench.statistic import build_medians
from bench.tune import NOT_SEARCHED, NOTHING_FASTER
from lensing_models.checkpoint import Card, write_checkpoint
from lensing_models.data.simulate import simulate_dataset
from lensing_models.preset import Split
from lensing_models.registry import find_architecture, find_task
from tests.bench.planted.tunable import BUILD_S

ROOT = Path(__file__).resolve().parents[2]
PLANTED = ("wrong", "nan", "crash", "unbuildable", "fallback", "greedy", "shape", "raising", "leak", "hang")
#: Known to every run, but part of none that names `PLANTED`.
UNSERVABLE, FLIPPING, TUNABLE = "unservable", "flipping", "tunable"
COLUMNS = (
    "task,architecture,backend,precision,batch_size,device,threads,variant,status,reason,validity,latency_p50_s,"
    "latency_p50_low_s,latency_p50_high_s,throughput_img_s,auc,accuracy,mse,on_frontier"
)

#: A machine that others use may leave no valid row.
DONE = (0, SPOILT)


@dataclass(frozen=True)
class Bench:
    """Data and a checkpoint, and the command line that uses them."""

    data: Path
    checkpoints: Path
    cwd: Path

    def command(self, out: str, *more: str) -> list[str]:
        fixed = ["--models", "mobilenetv3_small", "--tasks", "substructure", "--device", "cpu", "--threads", "2"]
        given = ["--data", str(self.data), "--checkpoints", str(self.checkpoints), "--out", out]
        return [sys.executable, "-m", "bench.run", *fixed, *given, "--time-budget", "0.4", *more]

    def environment(self) -> dict[str, str]:
        planted = ",".join(f"tests.bench.planted.{name}" for name in (*PLANTED, UNSERVABLE, FLIPPING, TUNABLE))
        return {**os.environ, "LENSING_BENCH_BACKENDS": planted, "PYTHONPATH": str(ROOT)}

    def run(self, out: str, *more: str) -> subprocess.CompletedProcess[str]:
        command = self.command(out, *more)
        return subprocess.run(
            command, capture_output=True, text=True, cwd=self.cwd, env=self.environment(), timeout=400, check=False
        )

    def records(self, out: str) -> list[RunRecord]:
        return list(read_lines(self.cwd / out / "records.jsonl", RunRecord))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Return a tiny data set and a checkpoint of tame random weights."""
    folder = tmp_path_factory.mktemp("bench")
    task, architecture = find_task("substructure"), find_architecture("mobilenetv3_small")
    store = simulate_dataset(task, Split(train=6, validation=3, test=42), folder / "data")
    torch.manual_seed(0)
    network = architecture.build(task).train()
    with torch.no_grad():
        network(torch.rand(8, *task.image_shape))
    card = Card(
        task=task.name,
        architecture=architecture.name,
        recipe_digest=store.recipe_digest,
        sky=store.sky,
        preset="quick",
        seed=0,
        steps=0,
        epochs=0.0,
        converged=False,
        revision="test",
        versions={},
        recorded_at="2026-01-01T00:00:00+00:00",
    )
    write_checkpoint(network.eval(), folder / "checkpoints", card)
    return Bench(data=folder / "data", checkpoints=folder / "checkpoints", cwd=folder)


@pytest.fixture(scope="module")
def planted_run(bench: Bench) -> subprocess.CompletedProcess[str]:
    names = ",".join(f"planted_{name}" for name in PLANTED)
    what = ("--backends", f"eager,{names}", "--precisions", "fp32", "--batch-sizes", "1,2")
    # One thread: two that wait for each other are slow beyond any limit where something else works too.
    # The leak takes a quarter of a GiB a call; no eager worker comes near the limit.
    return bench.run("planted", *what, "--threads", "1", "--case-timeout", "20", "--memory-limit", "1.5")


def by_backend(records: list[RunRecord], backend: str) -> list[RunRecord]:
    return [record for record in records if record.case.backend == backend]


def test_a_failed_case_exits_with_1_and_keeps_every_row(
    bench: Bench, planted_run: subprocess.CompletedProcess[str]
) -> None:
    assert planted_run.returncode == 1, planted_run.stderr
    assert len(bench.records("planted")) == (1 + len(PLANTED)) * 2


def test_a_run_notes_its_ceilings_and_each_row_its_arithmetic(
    bench: Bench, planted_run: subprocess.CompletedProcess[str]
) -> None:
    ceilings = read_ceilings(json.loads((bench.cwd / "planted" / "run.json").read_text(encoding="utf-8")))

    found = [record.measurement for record in by_backend(bench.records("planted"), "eager")]

    assert ceilings.matmul_flop_s["fp32"] > 0
    assert [row and row.roof_flop_s for row in found] == [ceilings.matmul_flop_s["fp32"]] * 2
    # timm publishes 0.06 GMAC at 224 px for mobilenetv3_small_100; at 150 px it is less.
    assert all(row and 0.02e9 < (row.flop_per_image or 0) < 2 * 0.06e9 for row in found)


def test_a_row_without_energy_says_why(bench: Bench, planted_run: subprocess.CompletedProcess[str]) -> None:
    found = [record.measurement for record in by_backend(bench.records("planted"), "eager")]

    # Preset quick has no window, and many a machine no counter.
    assert all(row and row.energy and row.energy.energy_j is None and row.energy.reason for row in found)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("wrong", "outputs differ from eager fp32"),
        ("nan", "not finite"),
        ("crash", "SIGSEGV"),
        ("unbuildable", "the planted builder never builds"),
        ("shape", "outputs are (42, 2) for 42 labels, not (42, 3)"),
        ("raising", "RuntimeError: the planted kernel never runs"),
        ("leak", "used more than 1.5 GiB of memory in score; killed"),
        ("hang", "hung: no answer to open within 20 s; killed"),
        ("greedy", "out of memory: MemoryError: a batch too many"),
    ],
)
def test_a_planted_fault_fails_and_is_never_timed(
    bench: Bench, planted_run: subprocess.CompletedProcess[str], fault: str, reason: str
) -> None:
    records = by_backend(bench.records("planted"), f"planted_{fault}")

    assert {record.status for record in records} == {"failed"}
    assert all(reason in record.reason and record.timing is None for record in records)


def test_what_is_not_faulty_is_measured_all_the_same(
    bench: Bench, planted_run: subprocess.CompletedProcess[str]
) -> None:
    records = by_backend(bench.records("planted"), "eager")

    assert [record.status for record in records] == ["ok", "ok"]
    assert all(record.timing for record in records)


def test_the_parts_of_a_run_add_up_to_its_wall_time(
    bench: Bench, planted_run: subprocess.CompletedProcess[str]
) -> None:
    facts = json.loads((bench.cwd / "planted" / "run.json").read_text(encoding="utf-8"))

    parts = facts["breakdown_s"]
    assert sum(parts.values()) == pytest.approx(facts["wall_s"])
    assert {"self-test", "build", "quality", "warm-up", "measuring", "report", "other"} <= parts.keys()
    assert (
        parts["build"] >= 20
    )  # the session that hung in its first call had all of its limit, and nothing else to share it with
    assert "## Where the time went" in (bench.cwd / "planted" / "report.md").read_text(encoding="utf-8")


def test_a_silent_fallback_is_ok_but_not_valid(bench: Bench, planted_run: subprocess.CompletedProcess[str]) -> None:
    records = by_backend(bench.records("planted"), "planted_fallback")

    assert {(record.status, record.validity, record.reason) for record in records} == {
        ("ok", "fallback", "ran on the CPU")
    }


def test_a_case_is_measured_beside_its_latency(bench: Bench, planted_run: subprocess.CompletedProcess[str]) -> None:
    (first, second) = by_backend(bench.records("planted"), "eager")

    for record in (first, second):
        assert record.throughput_timing is None  # with one thread
        assert record.end_to_end
        assert record.measurement
        assert (record.measurement.load_s or 0) > 0
        assert (record.measurement.first_inference_s or 0) > 0
        assert (record.measurement.peak_host_bytes or 0) > 0


def test_no_faulty_case_is_on_the_frontier(bench: Bench, planted_run: subprocess.CompletedProcess[str]) -> None:
    with (bench.cwd / "planted" / "table.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))

    assert {row["backend"] for row in rows if row["on_frontier"] == "true"} == {"eager"}


def test_the_table_has_the_promised_columns(bench: Bench, planted_run: subprocess.CompletedProcess[str]) -> None:
    with (bench.cwd / "planted" / "table.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))

    assert ",".join(rows[0]).startswith(COLUMNS)
    assert all(row["mse"] == "" for row in rows)  # a metric of the other kind of task


def test_quality_is_scored_through_the_session(bench: Bench, planted_run: subprocess.CompletedProcess[str]) -> None:
    (first, _) = by_backend(bench.records("planted"), "eager")

    assert first.quality_images == 42
    assert set(first.quality) == {"auc", "accuracy", "log_loss"}


def test_a_run_leaves_every_report(bench: Bench, planted_run: subprocess.CompletedProcess[str]) -> None:
    left = {path.name for path in (bench.cwd / "planted").iterdir()}

    assert left >= {"records.jsonl", "environment.json", "report.md", "table.csv", "pareto.csv", "pareto.png"}


def test_a_second_run_into_the_folder_is_refused(bench: Bench, planted_run: subprocess.CompletedProcess[str]) -> None:
    answer = bench.run("planted", "--backends", "eager")

    assert answer.returncode == 2
    assert "--resume" in answer.stderr


def test_what_other_work_spoilt_is_measured_once_more_on_request(bench: Bench) -> None:
    what = ("--backends", "eager", "--precisions", "fp32", "--batch-sizes", "1,2", "--threads", "1")
    assert bench.run("again", *what).returncode in DONE
    lines = bench.cwd / "again" / "records.jsonl"
    records = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    for record in records:
        record["validity"] = "contended" if record["case"]["batch_size"] == 1 else "valid"
        record["timing"]["anchor_low_s"] = {}
    lines.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")

    plain = bench.run("again", "--threads", "1", "--resume")
    after_plain = len(bench.records("again"))
    again = bench.run("again", "--threads", "1", "--resume", "--retry-contended")

    assert plain.returncode in DONE
    assert again.returncode in DONE, again.stderr
    assert after_plain == 2
    (once_more,) = bench.records("again")[2:]
    assert once_more.case.batch_size == 1
    assert once_more.quality == bench.records("again")[0].quality
    assert "score" not in again.stderr  # its outputs are there

    (outputs,) = (bench.cwd / "again" / "outputs").glob("*-eager-*.npy")
    outputs.unlink()
    text = lines.read_text(encoding="utf-8").replace('"validity":"valid"', '"validity":"contended"')
    lines.write_text(text.replace('"validity": "valid"', '"validity": "contended"'), encoding="utf-8")

    third = bench.run("again", "--threads", "1", "--resume", "--retry-contended")

    assert "score" in third.stderr  # or nothing could be held against them
    assert outputs.exists()


@pytest.mark.skipif(find_spec("mlperf_loadgen") is None, reason="mlcommons-loadgen is not installed")
def test_a_scenario_that_raises_spoils_no_latency_and_the_rest_is_driven(bench: Bench) -> None:
    options = ["--threads", "1", "--precisions", "fp32", "--batch-sizes", "1", "--scenarios", "single_stream,burst"]

    answer = bench.run("driven", "--backends", "planted_unservable", *options)

    (record,) = bench.records("driven")
    driven = {each.scenario: each for each in read_lines(bench.cwd / "driven" / "scenarios.jsonl", ScenarioRecord)}
    assert answer.returncode == 1, answer.stderr
    assert record.status == "ok"
    assert driven["single_stream"].status == "failed"
    assert "the planted session serves nobody" in driven["single_stream"].reason
    assert driven["burst"].status == "ok"
    assert "scenarios: 1 ok, 0 skipped, 1 failed" in answer.stdout


def test_each_build_is_timed_and_their_spread_told(bench: Bench) -> None:
    options = ["--backends", "planted_tunable", "--precisions", "fp32", "--batch-sizes", "1", "--threads", "1"]

    answer = bench.run("built", *options, "--processes", "2", "--builds", "2")

    (record,) = bench.records("built")
    assert answer.returncode in DONE, answer.stderr
    assert record.timing
    assert record.measurement
    first, second = build_medians(record.timing)
    # Of the last process; a first one that other work has spoilt is replaced in the end.
    assert record.measurement.evidence["build"] in (0, 1)
    assert second - first > BUILD_S / 2
    assert "2 builds of mobilenetv3_small" in (bench.cwd / "built" / "report.md").read_text(encoding="utf-8")


def test_more_builds_than_processes_are_refused(bench: Bench) -> None:
    answer = bench.run("unbuilt", "--backends", "planted_tunable", "--builds", "2")

    assert answer.returncode == 2
    assert "give --processes as well" in answer.stderr


def test_a_tuned_row_stands_beside_the_default_one_or_says_why_not(bench: Bench) -> None:
    options = ["--backends", "planted_tunable", "--precisions", "fp32", "--batch-sizes", "1", "--threads", "1"]

    answer = bench.run("tuned", *options, "--tune")

    rows = {record.case.variant: record for record in bench.records("tuned")}
    (tuning,) = read_lines(bench.cwd / "tuned" / "tuning.jsonl", Tuning)
    assert answer.returncode in DONE, answer.stderr
    assert rows["default"].status == "ok"
    assert [each.settings for each in tuning.tries][:2] == [{"wait_ms": 50}, {"wait_ms": 10}]
    # On a busy machine no try has a time, and the defaults stay.
    if tuning.settings:
        assert rows["tuned"].status == "ok"
        assert rows["tuned"].measurement
        assert rows["tuned"].measurement.evidence["settings"] == "wait_ms=10"
        assert "| wait_ms=10 |" in (bench.cwd / "tuned" / "report.md").read_text(encoding="utf-8")
    else:
        assert rows["tuned"].reason.startswith(NOTHING_FASTER if tuning.is_timed else NOT_SEARCHED)
    again = bench.run("tuned", "--threads", "1", "--resume")
    assert again.returncode in DONE, again.stderr
    # What is known stands; what could not be searched is searched again.
    searches = list(read_lines(bench.cwd / "tuned" / "tuning.jsonl", Tuning))
    assert len(searches) == (1 if tuning.is_timed else 2)


@pytest.fixture(scope="module")
def drifted_run(bench: Bench) -> subprocess.CompletedProcess[str]:
    """Return a run of a network that is fitted, eager and with half of its answers flipped."""
    fitted = ("--checkpoints", str(ROOT / "results" / "checkpoints"), "--threads", "1", "--batch-sizes", "1,2")
    return bench.run("drifted", "--backends", "eager,planted_flipping", *fitted, "--margin", "auc=0.01")


def test_flipped_answers_are_worse_and_on_no_frontier(
    bench: Bench, drifted_run: subprocess.CompletedProcess[str]
) -> None:
    with (bench.cwd / "drifted" / "table.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))

    flipped = [row for row in rows if row["backend"] == "planted_flipping" and row["status"] == "ok"]
    assert drifted_run.returncode in DONE, drifted_run.stderr
    assert [(row["drift_verdict"], row["on_frontier"]) for row in flipped] == [("worse", "false")] * 2
    assert all(0 < int(row["flips_lost"]) <= int(row["flips"]) <= 42 for row in flipped)
    assert all(float(row["drift_accuracy_high"]) < -0.005 and float(row["mcnemar_p"]) < 0.05 for row in flipped)


def test_eager_fp32_does_not_drift_from_itself(bench: Bench, drifted_run: subprocess.CompletedProcess[str]) -> None:
    records = [record for record in by_backend(bench.records("drifted"), "eager") if record.case.precision == "fp32"]

    for record in records:
        assert record.drift
        assert (record.drift.images, record.drift.flips) == (42, 0)
        assert all(abs(one.point) < 1e-3 for one in record.drift.differences)
        assert [one.metric for one in record.quality_intervals] == ["auc", "accuracy"]
    assert len(records) == 2


def test_the_reference_holds_the_whole_test_split(bench: Bench, drifted_run: subprocess.CompletedProcess[str]) -> None:
    (reference,) = (bench.cwd / "drifted" / "outputs").glob("*-reference.npy")

    assert np.load(reference).shape == (42, 3)


def test_the_margin_of_a_run_is_kept_and_a_resumed_one_has_the_same(
    bench: Bench, drifted_run: subprocess.CompletedProcess[str]
) -> None:
    facts = json.loads((bench.cwd / "drifted" / "run.json").read_text(encoding="utf-8"))

    answer = bench.run("drifted", "--backends", "eager", "--threads", "1", "--resume", "--margin", "auc=0.02")

    assert facts["settings"]["margin"] == {"accuracy": 0.005, "auc": 0.01, "mse": 0.02}
    assert answer.returncode == 2
    assert "settings; choose another --out" in answer.stderr


def test_trt_and_onnx_do_what_they_say(bench: Bench) -> None:
    answer = bench.run("main", "--backends", "trt,onnx", "--batch-sizes", "1", "--precisions", "fp32")

    statuses = {record.case.backend: record.status for record in bench.records("main")}
    (saturated,) = (record.throughput_timing for record in by_backend(bench.records("main"), "onnx"))
    assert saturated
    assert saturated.experiment == "throughput"
    assert all(sum(block.samples_s) > 0 for block in saturated.blocks)
    skipped_or_measured = statuses["trt"] in ("skipped", "ok")
    assert answer.returncode in DONE, answer.stderr
    assert statuses["onnx"] == "ok"
    assert skipped_or_measured


@pytest.mark.skipif(torch.cuda.is_available(), reason="TensorRT may be measured here")
def test_strict_turns_a_skip_into_exit_code_1(bench: Bench) -> None:
    assert bench.run("strict", "--backends", "trt", "--strict").returncode == 1


def test_verify_checks_without_timing(bench: Bench) -> None:
    answer = bench.run("verified", "--backends", "eager", "--verify", "--batch-sizes", "1")

    assert answer.returncode in DONE, answer.stderr
    assert all(record.timing is None and record.parity for record in bench.records("verified"))


def test_a_killed_run_is_completed_and_nothing_measured_twice(bench: Bench) -> None:
    options = (
        "--backends",
        "eager,torchscript",
        "--precisions",
        "fp32",
        "--batch-sizes",
        "1,2,3,4",
        "--processes",
        "2",
    )
    process = subprocess.Popen(
        bench.command("killed", *options),
        cwd=bench.cwd,
        env=bench.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    lines = bench.cwd / "killed" / "records.jsonl"
    deadline = time.monotonic() + 300
    while not (lines.exists() and lines.read_text(encoding="utf-8").count("\n") >= 2):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = bench.records("killed")

    # Without its options: a run is completed as it was begun.
    answer = bench.run("killed", "--resume")

    after = bench.records("killed")
    assert answer.returncode in DONE, answer.stderr
    assert 2 <= len(before) < 8
    assert after[: len(before)] == before
    assert set(Counter(record.case.key for record in after).values()) == {1}
    assert len(after) == 8
    assert all({block.process for block in record.timing.blocks} == {0, 1} for record in after if record.timing)
    # What was scored before the kill is not scored again, and its drift is known all the same.
    assert all(record.drift and record.quality_intervals for record in after)


@contextmanager
def a_hog() -> Iterator[None]:
    """Keep one core busy with nothing."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_under_foreign_load_a_run_ends_and_says_so(bench: Bench) -> None:
    with a_hog():
        answer = bench.run("loaded", "--backends", "eager", "--precisions", "fp32", "--batch-sizes", "1", "--threads=1")

    (record,) = bench.records("loaded")
    assert answer.returncode in DONE, answer.stderr
    assert record.validity == "contended"
    assert record.timing is not None
    assert {block.rejected_for for block in record.timing.blocks if not block.accepted} >= {"foreign_load"}
    page = (bench.cwd / "loaded" / "report.md").read_text(encoding="utf-8")
    assert "**Provisional, measured under load: no row is valid (1 contended)." in page
    assert "Frontier at batch 1: *provisional, measured under load*; of 1 rows, 1 are not valid (1 contended)." in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--backends", "tr"), "Did you mean 'trt'?"),
        (("--models", "resnet19"), "Did you mean 'resnet18'?"),
        (("--tasks", "halomass"), "Did you mean 'halo_mass'?"),
        (("--precisions", "fp23"), "Did you mean 'fp32'?"),
        (("--variants", "optimised"), "Did you mean 'optimized'?"),
        (("--batch-sizes", "0"), "positive whole numbers"),
        (("--device", "tpu"), "invalid choice"),
        (("--threads", "two"), "invalid int"),
        (("--time-budget", "-1"), "more than 0"),
        (("--target-ci", "5"), "between 0 and 1"),
        (("--case-timeout", "0"), "more than 0"),
        (("--margin", "acc=0.01"), "unknown metric 'acc'; known: accuracy, auc, mse"),
        (("--margin", "auc=2"), "from 0 to below 1"),
        (("--memory-limit", "-1"), "more than 0"),
        (("--scenarios", "sever"), "Did you mean 'server'?"),
        (("--p99-ms", "0"), "more than 0"),
        (("--scenarios", "all", "--verify"), "leave one of them out"),
        (("--resume",), "nothing to resume"),
        (("--retry-contended",), "needs --resume"),
        (("--retry-contended", "--resume", "--verify"), "--retry-contended measures anew"),
        (("--out", "/dev/null/run"), "cannot write to --out"),
        (("--data", "nowhere"), "manifest.json"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(bench: Bench, arguments: tuple[str, ...], said: str) -> None:
    answer = bench.run("bad", *arguments)

    assert answer.returncode == 2
    last = answer.stderr.strip().splitlines()[-1]
    assert said in last
    assert "Traceback" not in answer.stderr


def test_a_damaged_checkpoint_is_named(bench: Bench, tmp_path: Path) -> None:
    for path in bench.checkpoints.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damaged = tmp_path / "substructure-mobilenetv3_small.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x7f")

    answer = bench.run("damaged", "--checkpoints", str(tmp_path))

    assert answer.returncode == 2
    assert damaged.name in answer.stderr
    assert "Traceback" not in answer.stderr


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys; from bench.run import run; run(['--list']); "
        "print([name for name in ('torch', 'onnxruntime', 'openvino', 'matplotlib') if name in sys.modules])"
    )

    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    assert answer.stdout.splitlines()[-1] == "[]"
    assert "140 cases" in answer.stdout
