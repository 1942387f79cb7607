from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from bench.memory import is_out_of_memory
from bench.tensorrt_build import (
    BuildArguments,
    EngineHost,
    engine_key,
    failure,
    find_or_build,
    read_plan,
    timing_file,
    write_plan,
)

ARGUMENTS = BuildArguments(batch_size=32, tf32=False)
HOST = EngineHost(tensorrt="11.4.0.106", gpu="NVIDIA H100", compute_capability=(9, 0), driver="580.65.06")


@pytest.mark.parametrize(
    "changed",
    [
        ("b" * 64, ARGUMENTS, HOST),
        ("a" * 64, replace(ARGUMENTS, batch_size=1), HOST),
        ("a" * 64, replace(ARGUMENTS, tf32=True), HOST),
        ("a" * 64, replace(ARGUMENTS, optimization_level=5), HOST),
        ("a" * 64, replace(ARGUMENTS, build=1), HOST),
        ("a" * 64, ARGUMENTS, replace(HOST, tensorrt="10.16.1.11")),
        ("a" * 64, ARGUMENTS, replace(HOST, gpu="NVIDIA H200")),
        ("a" * 64, ARGUMENTS, replace(HOST, compute_capability=(10, 0))),
        ("a" * 64, ARGUMENTS, replace(HOST, driver="580.65.07")),
    ],
)
def test_engine_key_changes_with_every_ingredient(changed: tuple[str, BuildArguments, EngineHost]) -> None:
    assert engine_key(*changed) != engine_key("a" * 64, ARGUMENTS, HOST)


def test_engine_key_is_the_same_for_the_same_ingredients() -> None:
    assert engine_key("a" * 64, replace(ARGUMENTS), replace(HOST)) == engine_key("a" * 64, ARGUMENTS, HOST)


def test_kept_plan_is_read_back(tmp_path: Path) -> None:
    write_plan(tmp_path / "k.plan", b"plan")

    assert read_plan(tmp_path / "k.plan") == b"plan"


def test_damaged_plan_is_not_read(tmp_path: Path) -> None:
    write_plan(tmp_path / "k.plan", b"plan")
    (tmp_path / "k.plan").write_bytes(b"pl")

    assert read_plan(tmp_path / "k.plan") is None


def test_plan_without_a_digest_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "k.plan").write_bytes(b"plan")

    assert read_plan(tmp_path / "k.plan") is None


def test_writing_a_plan_leaves_nothing_unfinished(tmp_path: Path) -> None:
    write_plan(tmp_path / "k.plan", b"plan")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["k.plan", "k.plan.sha256"]


def test_builds_share_no_timings_and_neither_do_hosts(tmp_path: Path) -> None:
    hosts = (HOST, replace(HOST, driver="580.65.07"))

    files = {timing_file(replace(ARGUMENTS, build=build), host, tmp_path) for build in (0, 1) for host in hosts}

    assert len(files) == 4
    assert timing_file(replace(ARGUMENTS, batch_size=1), HOST, tmp_path) in files


def test_failure_quotes_the_last_messages_of_tensorrt() -> None:
    error = failure("build an engine", ["first", "second", "third", "fourth"])

    assert str(error) == "TensorRT could not build an engine: second; third; fourth"


def test_failure_quotes_that_memory_ran_out_before_and_no_message_at_length() -> None:
    warning = "Tactic Device request: 1000MB Available: 302MB. Device memory is insufficient to use tactic."

    error = failure("build an engine", [warning, "a", "b", "x" * 9000])

    assert is_out_of_memory(str(error))
    assert len(str(error)) < 1000


@dataclass
class Builder:
    """Stands for TensorRT's: no two of its plans are alike, and it knows one kernel more after each."""

    given: list[bytes] = field(default_factory=list)

    def build(self, onnx_file: Path, arguments: BuildArguments, timings: bytes = b"") -> tuple[bytes, bytes]:
        self.given.append(timings)
        return f"plan {len(self.given)}".encode(), timings + b"k"


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    stand_in = Builder()
    monkeypatch.setattr("bench.tensorrt_build.build_plan", stand_in.build)
    return stand_in


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    (tmp_path / "graph.onnx").write_bytes(b"graph")
    return tmp_path / "graph.onnx"


def test_an_engine_is_built_once_and_a_damaged_one_again(builder: Builder, graph: Path, tmp_path: Path) -> None:
    first, second = (find_or_build(graph, ARGUMENTS, HOST, tmp_path) for _ in range(2))
    (tmp_path / f"{first.key}.plan").write_bytes(b"pl")
    third = find_or_build(graph, ARGUMENTS, HOST, tmp_path)

    assert [engine.plan for engine in (first, second, third)] == [b"plan 1", b"plan 1", b"plan 2"]
    assert [engine.reused for engine in (first, second, third)] == [False, True, False]
    # The third is built with what the first has left; who finds an engine knows how it was made.
    assert [engine.had_timings for engine in (first, second, third)] == [False, False, True]


def test_what_has_no_kernel_is_not_tried_again_and_what_had_no_memory_is(
    monkeypatch: pytest.MonkeyPatch, graph: Path, tmp_path: Path
) -> None:
    tries: list[str] = []
    reason = "TensorRT could not build an engine: Could not find any implementation for node dw"

    def refuse(*_: object) -> tuple[bytes, bytes]:
        tries.append(reason)
        raise RuntimeError(f"{reason}{'; insufficient memory' if len(tries) == 1 else ''}")

    monkeypatch.setattr("bench.tensorrt_build.build_plan", refuse)
    for _ in range(4):
        with pytest.raises(RuntimeError, match="any implementation for node dw"):
            find_or_build(graph, ARGUMENTS, HOST, tmp_path)

    assert len(tries) == 2


def test_another_graph_is_built_with_the_times_that_the_first_has_left(
    builder: Builder, graph: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(b"another graph")

    find_or_build(graph, ARGUMENTS, HOST, tmp_path)
    find_or_build(other, ARGUMENTS, HOST, tmp_path)

    assert builder.given == [b"", b"k"]


def test_another_build_of_a_graph_is_another_engine_made_without_those_times(
    builder: Builder, graph: Path, tmp_path: Path
) -> None:
    first = find_or_build(graph, ARGUMENTS, HOST, tmp_path)
    second = find_or_build(graph, replace(ARGUMENTS, build=1), HOST, tmp_path)

    assert (first.plan, second.plan) == (b"plan 1", b"plan 2")
    assert builder.given == [b"", b""]


def test_damaged_times_are_forgotten(builder: Builder, graph: Path, tmp_path: Path) -> None:
    find_or_build(graph, ARGUMENTS, HOST, tmp_path)
    timing_file(ARGUMENTS, HOST, tmp_path).write_bytes(b"torn")

    find_or_build(graph, replace(ARGUMENTS, batch_size=1), HOST, tmp_path)

    assert builder.given == [b"", b""]


def test_two_at_once_build_one_engine(builder: Builder, graph: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        engines = list(pool.map(lambda _: find_or_build(graph, ARGUMENTS, HOST, tmp_path), range(4)))

    assert {engine.plan for engine in engines} == {b"plan 1"}
    assert len(builder.given) == 1
