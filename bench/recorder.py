"""Write the record of each case: skipped, failed, or with all that was measured."""

from __future__ import annotations

from dataclasses import replace

from bench.backends import known_backends
from bench.crew import Crew
from bench.experiment import Findings
from bench.machine_facts import read_ceilings
from bench.measure import utc_now
from bench.parity import worse_of
from bench.provision import Provision
from bench.records import Case, Parity, RunRecord, Timing
from bench.run_folder import RunFolder
from bench.statistic import judge
from lensing_models.registry import find_task


class Recorder:
    """The records of one pass over a run's cases.

    Args:
        folder: Where they are written.
        provision: Data and checkpoints.
        fingerprint: Of the machine and thread count.
    """

    def __init__(self, folder: RunFolder, provision: Provision, fingerprint: str) -> None:
        self._folder, self._provision, self._fingerprint = folder, provision, fingerprint

    def blank(self, case: Case) -> RunRecord:
        """Return the record of *case* with all that is known before it runs."""
        found = self._provision.checkpoints.get((case.task, case.network))
        store = self._provision.stores.get(case.task)
        return RunRecord(
            run=self._folder.path.name,
            recorded_at=utc_now(),
            case=case,
            status="skipped",
            checkpoint_sha256=found[1].sha256 if found else "",
            dataset_digest=store.recipe_digest if store else "",
            converged=found[1].converged if found else None,
            cut_to=found[1].cut_to if found else "",
            backend_version=known_backends()[case.backend].probe(case.device).version,
            primary_metric=find_task(case.task).primary_metric,
            environment=self._fingerprint,
        )

    def skip(self, case: Case, reason: str) -> None:
        """Record that *case* has no row of its own, for *reason*."""
        self._folder.record(replace(self.blank(case), status="skipped", reason=reason))

    def fail(self, case: Case, reason: str, parity: Parity | None = None) -> None:
        """Record that *case* failed, for *reason* on one line, and how far its outputs were off if that was it."""
        one_line = " ".join(reason.split())
        self._folder.record(replace(self.blank(case), status="failed", reason=one_line, parity=parity))

    def complete(
        self,
        case: Case,
        crew: Crew,
        findings: Findings,
        *,
        timing: Timing | None,
        flop_per_image: float | None,
        earlier: RunRecord | None = None,
    ) -> None:
        """Record *case*, which was measured, or, without a *timing*, only checked; *earlier* is what this replaces."""
        evidence = findings.evidence
        record = replace(
            self.blank(case),
            status="ok",
            reason="; ".join([*([str(evidence["fallback"])] if evidence.get("fallback") else []), *findings.remarks]),
            validity=judge(timing, evidence, case.precision) if timing else "",
            measurement=replace(
                crew.measurement(
                    evidence, findings.input_digest, findings.largest, earlier.measurement if earlier else None
                ),
                gpu_samples_s=findings.gpu_samples_s,
                energy=findings.energy,
                flop_per_image=flop_per_image,
                roof_flop_s=read_ceilings(self._folder.facts()).matmul_flop_s.get(case.precision),
            ),
            parity=worse_of(earlier.parity, crew.worst_opened) if earlier else crew.worst_parity,
            quality=crew.quality,
            quality_images=crew.quality_images,
            quality_intervals=crew.quality_intervals,
            drift=crew.drift,
            timing=timing,
            throughput_timing=findings.throughput_timing,
            end_to_end=findings.end_to_end,
        )
        self._folder.record(record)
