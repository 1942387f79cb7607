"""The folder of one run: its lock, its lines, and what an earlier attempt left in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from bench.json_lines import append_line, from_json, read_lines, to_json
from bench.knob import Tuning
from bench.records import Block, Environment, RunRecord
from bench.scenario_record import ScenarioRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockRow:
    """A block in ``blocks.jsonl``: the case it belongs to, the group it was measured in."""

    case: str
    group: str
    block: Block


class RunFolder:
    """A run's folder, held by one process at a time; a context manager.

    Args:
        path: The folder; made if missing.
        resume: Whether the records of an earlier attempt are completed.

    Raises:
        OSError: If it cannot be written.
        ValueError: If another run holds it, or it holds records and *resume* is false, or there is
            nothing to resume.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self.records_file = path / "records.jsonl"
        if resume and not (path / "run.json").exists():
            raise ValueError(f"nothing to resume in {path}: it has no run.json")
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / "outputs").mkdir(exist_ok=True)
            # The system drops the lock with the process that holds it, killed or not.
            self._lock = FileLock(path / ".lock", timeout=0)
            self._lock.acquire()
        except Timeout as error:
            raise ValueError(f"another run is writing to {path}; wait for it or choose another --out") from error
        except OSError as error:
            raise OSError(f"cannot write to --out {path}: {error.strerror or error}") from error
        if resume:
            for name in ("records.jsonl", "blocks.jsonl", "scenarios.jsonl", "tuning.jsonl"):
                self._trim(name)
        if not resume and self.records_file.exists():
            self._lock.release()
            raise ValueError(f"{path} holds a run already; complete it with --resume or choose another --out")
        if not resume:
            # What an attempt without a record found out was of its own threads, options and hour.
            for name in ("environment.json", "run.json", "blocks.jsonl", "scenarios.jsonl", "tuning.jsonl"):
                (path / name).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def start(self, environment: Environment, settings: Mapping[str, object]) -> None:
        """Write ``environment.json`` and the settings; on resuming, check that they are the same.

        Raises:
            ValueError: If the run was begun on another machine, with other versions or another
                revision, or with other settings: its records would not compare with new ones.
        """
        known = self.path / "environment.json"
        if known.exists():
            earlier = from_json(Environment, known.read_text(encoding="utf-8"))
            begun = self.facts().get("settings")
            differing = [
                name
                for name in ("fingerprint", "versions", "revision")
                if getattr(earlier, name) != getattr(environment, name)
            ]
            differing += ["settings"] if begun != dict(settings) else []
            if differing:
                raise ValueError(
                    f"{self.path} was begun with another {' and '.join(differing)}; choose another --out "
                    f"(begun with {begun}, fingerprint {earlier.fingerprint}, revision {earlier.revision})"
                )
        self._write("environment.json", to_json(environment))
        self.note({"settings": dict(settings)})

    def note(self, facts: Mapping[str, object]) -> None:
        """Merge *facts* into ``run.json``."""
        self._write("run.json", json.dumps({**self.facts(), **facts}, indent=1))

    def facts(self) -> dict[str, object]:
        """Return what ``run.json`` says; empty if there is none."""
        path = self.path / "run.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}

    def breakdown_s(self) -> dict[str, float]:
        """Return the wall time by part of the attempts that came to their end [s]."""
        spent_s = self.facts().get("breakdown_s")
        return {str(part): float(time_s) for part, time_s in spent_s.items()} if isinstance(spent_s, dict) else {}

    def record(self, record: RunRecord) -> None:
        """Append *record* to ``records.jsonl``."""
        append_line(self.records_file, record)

    def record_block(self, case: str, group: str, block: Block) -> None:
        """Append a block to ``blocks.jsonl``."""
        append_line(self.path / "blocks.jsonl", BlockRow(case=case, group=group, block=block))

    def record_scenario(self, record: ScenarioRecord) -> None:
        """Append *record* to ``scenarios.jsonl``."""
        append_line(self.path / "scenarios.jsonl", record)

    def record_tuning(self, tuning: Tuning) -> None:
        """Append *tuning* to ``tuning.jsonl``."""
        append_line(self.path / "tuning.jsonl", tuning)

    def blocks_of(self, case: str) -> list[Block]:
        """Return the blocks of *case* that an earlier attempt measured."""
        path = self.path / "blocks.jsonl"
        return [row.block for row in read_lines(path, BlockRow) if row.case == case] if path.exists() else []

    def finished(self) -> dict[str, RunRecord]:
        """Return the records of an earlier attempt by case key; a failed case is tried again."""
        if not self.records_file.exists():
            return {}
        latest = {record.case.key: record for record in read_lines(self.records_file, RunRecord)}
        return {key: record for key, record in latest.items() if record.status != "failed"}

    def outputs_file(self, worker_key: str) -> Path:
        """Return the file of a worker's outputs on the test split."""
        return self.path / "outputs" / f"{worker_key.replace('/', '-')}.npy"

    def _trim(self, name: str) -> None:
        """Remove a torn last line, of a writer that was killed: the next one would be glued to it."""
        path = self.path / name
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if not text.endswith("\n") and text:
            self._write(name, text[: text.rfind("\n") + 1])

    def _write(self, name: str, text: str) -> None:
        unfinished = self.path / f".{name}.unfinished"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(self.path / name)


def read_scenarios(path: Path) -> dict[tuple[str, str], ScenarioRecord]:
    """Return the last record of each scenario in the folder *path* by case key and scenario; empty if there is none.

    Raises:
        ValueError: If a record is damaged.
    """
    lines = path / "scenarios.jsonl"
    records = read_lines(lines, ScenarioRecord) if lines.exists() else ()
    return {(record.case.key, record.scenario): record for record in records}


def read_tunings(path: Path) -> dict[str, Tuning]:
    """Return the last tuning of each case in the folder *path* by case key; empty if there is none.

    Raises:
        ValueError: If a line is damaged.
    """
    lines = path / "tuning.jsonl"
    return {tuning.case: tuning for tuning in read_lines(lines, Tuning)} if lines.exists() else {}


def anchor_medians(path: Path) -> dict[str, dict[str, float]]:
    """Return by network of the anchor its median time in each group [s], from ``blocks.jsonl`` in *path*.

    Empty where nothing was timed.
    """
    import statistics

    groups: dict[str, dict[str, list[float]]] = {}
    lines = path / "blocks.jsonl"
    for row in read_lines(lines, BlockRow) if lines.exists() else ():
        if row.case.startswith("anchor/") and row.block.accepted:
            architecture = row.case.split("/")[2]
            medians = groups.setdefault(architecture, {}).setdefault(row.group, [])
            medians.append(statistics.median(row.block.samples_s))
    return {
        architecture: {group: statistics.median(medians) for group, medians in found.items()}
        for architecture, found in groups.items()
    }
