from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bench.json_lines import append_line
from bench.records import Block, Environment, RunRecord
from bench.run_folder import RunFolder, anchor_medians
from tests.bench.conftest import make_case


def environment(fingerprint: str, torch: str = "2.15") -> Environment:
    return Environment(fingerprint=fingerprint, hardware={}, versions={"torch": torch}, revision="r", platform="p")


def record(**changes: object) -> RunRecord:
    facts = {"run": "r", "recorded_at": "now", "case": make_case(), "status": "ok", **changes}
    return RunRecord(**facts)  # type: ignore[arg-type]  # a test names its own fields


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", resume=False), pytest.raises(ValueError, match="another run is writing"):
        RunFolder(tmp_path / "run", resume=False)


def test_the_lock_ends_with_its_owner(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", resume=False):
        pass

    with RunFolder(tmp_path / "run", resume=False) as folder:
        assert folder.finished() == {}


def test_a_folder_with_records_wants_resume(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", resume=False) as folder:
        folder.record(record())

    with pytest.raises(ValueError, match="--resume"):
        RunFolder(tmp_path / "run", resume=False)


def test_an_attempt_without_records_leaves_nothing_to_a_new_one(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", resume=False) as folder:
        folder.start(environment("one thread"), {})
        folder.note({"ceilings": {"fp32": 1.0}})
        folder.record_block("a", "group", Block(samples_s=(1.0,), foreign_load=0.0, accepted=True, round=1))

    with RunFolder(tmp_path / "run", resume=False) as folder:
        folder.start(environment("eight threads"), {})
        assert "ceilings" not in folder.facts()
        assert folder.blocks_of("a") == []


def test_an_attempt_without_records_is_resumed_as_it_was_begun(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", resume=False) as folder:
        folder.start(environment("abc"), {"preset": "quick"})

    with RunFolder(tmp_path / "run", resume=True) as folder, pytest.raises(ValueError, match="another fingerprint"):
        folder.start(environment("xyz"), {"preset": "quick"})


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to resume"):
        RunFolder(tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("then", "settings", "named"),
    [
        (environment("xyz"), {"preset": "quick"}, "fingerprint"),
        (environment("abc", torch="2.16"), {"preset": "quick"}, "versions"),
        (environment("abc"), {"preset": "standard"}, "settings"),
    ],
)
def test_what_would_not_compare_cannot_be_resumed(
    tmp_path: Path, then: Environment, settings: dict[str, object], named: str
) -> None:
    with RunFolder(tmp_path / "run", resume=False) as folder:
        folder.start(environment("abc"), {"preset": "quick"})
        folder.note({"run": "run"})
        folder.record(record())

    with (
        RunFolder(tmp_path / "run", resume=True) as folder,
        pytest.raises(ValueError, match=f"begun with another {named}"),
    ):
        folder.start(then, settings)


def test_a_torn_line_is_removed_and_its_case_is_not_finished(tmp_path: Path) -> None:
    whole, torn = record(), record(case=make_case(batch_size=32))
    with RunFolder(tmp_path / "run", resume=False) as folder:
        folder.note({"run": "run"})
        folder.record(whole)
        folder.record(torn)
        lines = folder.records_file.read_text(encoding="utf-8")
        folder.records_file.write_text(lines[:-20], encoding="utf-8")

    with RunFolder(tmp_path / "run", resume=True) as folder:
        assert folder.finished() == {whole.case.key: whole}
        folder.record(torn)
        assert set(folder.finished()) == {whole.case.key, torn.case.key}


def test_a_failed_case_is_tried_again(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", resume=False) as folder:
        folder.record(record(status="failed", reason="a crash"))

        assert folder.finished() == {}


def test_a_retry_that_failed_is_tried_again(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", resume=False) as folder:
        folder.record(record())
        folder.record(dataclasses.replace(record(), status="failed", reason="the process died"))

        assert folder.finished() == {}


def test_notes_are_added_to_what_is_known(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", resume=False) as folder:
        folder.note({"run": "r", "wall_s": None})
        folder.note({"wall_s": 3.5})

        assert folder.facts() == {"run": "r", "wall_s": 3.5}


def test_the_anchor_is_summed_up_by_group(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", resume=False) as folder:
        for group, sample, accepted in (("a", 1.0, True), ("a", 3.0, True), ("a", 99.0, False), ("b", 5.0, True)):
            block = Block(samples_s=(sample,), foreign_load=0.0, accepted=accepted, round=1)
            folder.record_block(f"anchor/{make_case(architecture='resnet18').key}", group, block)
            folder.record_block("case", group, block)

    assert anchor_medians(tmp_path / "run") == {"resnet18": {"a": 2.0, "b": 5.0}}


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")

    with pytest.raises(OSError, match=r"cannot write to --out .*file/run: Not a directory"):
        RunFolder(tmp_path / "file" / "run", resume=False)


def test_lines_are_whole_when_append_returns(tmp_path: Path) -> None:
    append_line(tmp_path / "lines", record())

    assert (tmp_path / "lines").read_text(encoding="utf-8").endswith("}\n")
