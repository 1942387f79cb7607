"""What a run leaves behind, as typed facts; `bench.json_lines` carries them. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bench.drift_facts import Drift, Estimate
from bench.machine_facts import DeviceState, Energy
from lensing_models.registry import known_architectures

SCHEMA = 2
#: Schema 1 lacks what has a default here.
READ_SCHEMAS = frozenset({1, SCHEMA})
Status = Literal["ok", "skipped", "failed"]
#: Why a block does not count: other people's processes were busy, or the anchor was slow in its round.
FOREIGN_LOAD, ANCHOR = "foreign_load", "anchor"
#: Share of the threads in use that other processes may keep busy meanwhile.
FOREIGN_LIMIT = 0.08
Validity = Literal["valid", "unstable", "throttled", "contended", "fallback", "undersampled", ""]
Scalar = str | int | float | bool | None
#: The variant that departs in nothing.
DEFAULT = "default"
#: The runtime variant that captures a CUDA graph of a call and replays it.
GRAPH = "graph"
#: The setting that numbers the builds of an artifact of which no two need be alike.
BUILD = "build"


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One cell of the sweep: what runs, on what, and how.

    Attributes:
        device: ``cpu`` or ``cuda``.
        threads: CPU threads that every runtime is given alike.
        variant: How the cell departs from the plain one (``graph``, ``tuned``, ``px150``), several joined by ``+``.
    """

    task: str
    architecture: str
    backend: str
    precision: str
    batch_size: int
    device: str
    threads: int
    variant: str = DEFAULT

    @property
    def key(self) -> str:
        """Return e.g. ``substructure/resnet18/trt/fp16/b32/cuda/t2/default``."""
        model = f"{self.task}/{self.architecture}/{self.backend}/{self.precision}"
        return f"{model}/b{self.batch_size}/{self.device}/t{self.threads}/{self.variant}"

    @property
    def network_variant(self) -> str:
        """Return what of the variant makes another network, e.g. ``px150``; ``default`` if nothing."""
        known = known_architectures()
        return next((part for part in self.variant.split("+") if f"{self.architecture}-{part}" in known), DEFAULT)

    @property
    def runtime_variant(self) -> str:
        """Return what of the variant concerns the runtime; ``default`` if nothing."""
        parts = [part for part in self.variant.split("+") if part != self.network_variant]
        return join_variants(*parts)

    @property
    def network(self) -> str:
        """Return the label of the network, by which it is chosen and its checkpoint is found."""
        variant = self.network_variant
        return self.architecture if variant == DEFAULT else f"{self.architecture}-{variant}"

    @property
    def worker_key(self) -> str:
        """Return what names the process that measures this case: all but batch and machine."""
        runtime = "" if self.runtime_variant == DEFAULT else f"+{self.runtime_variant}"
        return f"{self.task}/{self.network}/{self.backend}/{self.precision}{runtime}"

    def has_variant(self, name: str) -> bool:
        """Return whether *name* is among the variants that the case joins."""
        return name in self.variant.split("+")


def join_variants(*names: str) -> str:
    """Return the variant that departs by all of *names*; ``default`` if none does."""
    return "+".join(name for name in names if name != DEFAULT) or DEFAULT


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Consecutive timed calls of one case; the unit of the interval.

    Attributes:
        samples_s: Wall time of each timed call, `infer` and `synchronize` together [s]; in a block of
            throughput, the time from each completion to the next one of any slot.
        foreign_load: Busy time of other people's processes over the block's processor time,
            0 to 1; NaN where the system does not tell.
        accepted: Whether the block counts.
        round: Turn of the group in which it was measured.
        rejected_for: `FOREIGN_LOAD` or `ANCHOR`; empty for one that counts, and in records made before
            there was a second cause.
        device: What the GPU did meanwhile; None on a CPU.
        process: Which of the case's processes, started one after the other, it was measured in.
    """

    samples_s: tuple[float, ...]
    foreign_load: float
    accepted: bool
    round: int
    rejected_for: str = ""
    device: DeviceState | None = None
    process: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """The raw samples of one experiment on one case; statistics are computed on reading.

    Attributes:
        experiment: ``latency`` (one request in flight, each waited for) or ``throughput`` (two, each
            of a caller of its own).
        clock: ``host_wall``.
        warmup_blocks: Blocks thrown away until the medians settled.
        settled: Whether they did.
        stop_reason: ``target_ci``, ``time_budget`` or ``most_blocks``.
        required_blocks: Accepted blocks that a valid row needs.
        blocks: Every measured block, rejected ones included.
        anchor_s: Time of each anchor in the rounds that count [s]; empty in older records.
        anchor_low_s: Its lower end.
        group: Names those that were measured in the same rounds; empty in older records.
        builds: Builds of the artifact, which need not be alike; process *n* of a block ran build *n* modulo this.
    """

    experiment: str = "latency"
    clock: str = "host_wall"
    warmup_blocks: int
    settled: bool
    stop_reason: str
    required_blocks: int
    blocks: tuple[Block, ...]
    anchor_s: Mapping[str, float] = field(default_factory=dict)
    anchor_low_s: Mapping[str, float] = field(default_factory=dict)
    group: str = ""
    builds: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """What else is known of the measured session.

    Attributes:
        build_s: Wall time of the first `prepare` of all [s], from network in memory to session, by the
            process that scores; with nothing cached only where `artifact_cached` is false.
        artifact_bytes: Size of the deployed file; None where there is none.
        evidence: Proof of what ran, from the session.
        input_digest: SHA-256 of the rotated input buffers.
        artifact_cached: Whether the file was there already when `build_s` was measured; None where there is none.
        load_s: Wall time of `prepare` in a fresh process, the file being there [s].
        first_inference_s: Wall time of that session's very first call [s].
        peak_host_bytes: Most resident memory of that process while it loads and infers, less its level before.
        peak_host_source: Where that was read.
        peak_device_bytes: The same of the GPU's memory; None without a GPU or without NVML.
        peak_device_source: Where that was read.
        largest_batch: Largest batch that ran, of those tried by doubling; None where it was not asked for.
        largest_batch_end: Why the next one did not run.
        gpu_samples_s: Time of the GPU for one request after the other [s]; empty on a CPU, and where it is not told.
        energy: Energy of a window of calls.
        flop_per_image: Floating-point operations of the network for one image, a multiply-add being two.
        roof_flop_s: The arithmetic ceiling at the case's precision [FLOP/s], from the same run.
    """

    build_s: float
    artifact_bytes: int | None
    evidence: Mapping[str, Scalar]
    input_digest: str
    artifact_cached: bool | None = None
    load_s: float | None = None
    first_inference_s: float | None = None
    peak_host_bytes: int | None = None
    peak_host_source: str = ""
    peak_device_bytes: int | None = None
    peak_device_source: str = ""
    largest_batch: int | None = None
    largest_batch_end: str = ""
    gpu_samples_s: tuple[float, ...] = ()
    energy: Energy | None = None
    flop_per_image: float | None = None
    roof_flop_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Stages:
    """The way of one batch from the store to its answers, stage by stage; a sample a call [s].

    Attributes:
        decode_s: Stored values (uint16 counts) to float32 counts.
        preprocess_s: Counts scaled to [0, 1], on the host.
        copy_in_s: Images to the device, waited for.
        compute_s: `infer` and `synchronize`.
        copy_out_s: Outputs into a NumPy array of the caller's own.
        whole_s: From the first to the last of these, by the same clock.
        foreign_load: As of a block, over all these calls.
        accepted: Whether it was low enough for a block to count.
    """

    decode_s: tuple[float, ...]
    preprocess_s: tuple[float, ...]
    copy_in_s: tuple[float, ...]
    compute_s: tuple[float, ...]
    copy_out_s: tuple[float, ...]
    whole_s: tuple[float, ...]
    foreign_load: float
    accepted: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """How far the outputs are from the reference: eager fp32, NCHW, TF32 off, same device.

    Attributes:
        images: Test images compared.
        error: max |difference| / rms of the reference.
        tolerance: Largest error allowed; None for a reduced precision, which is not judged by it.
        passed: Whether the outputs are finite, well shaped and, for fp32, within the tolerance.
    """

    images: int
    error: float
    tolerance: float | None
    passed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """Where and with what a run was made.

    Attributes:
        fingerprint: Digest of hardware and thread count: runs compare only where it is equal.
        hardware: Processor, cores, memory, accelerator.
        versions: Package and driver versions by name.
        revision: Git revision of the suite; ``-dirty`` behind it if the tree was changed.
        platform: Operating system and machine.
    """

    fingerprint: str
    hardware: Mapping[str, Scalar]
    versions: Mapping[str, str]
    revision: str
    platform: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """One case of one run: its status, its reason and all that was measured.

    Attributes:
        recorded_at: ISO 8601 time, UTC.
        reason: Why the case is skipped or failed, or a remark on an ok one.
        validity: How far the timing can be trusted; empty where there is none.
        checkpoint_sha256: Digest of the weights; empty where none were loaded.
        dataset_digest: Recipe digest of the data.
        converged: Whether the network's fit ran to its end; False for preset ``quick``.
        cut_to: Where it did not because a time budget shortened it: how far it went, e.g. ``5 of 12 epochs``.
        quality: Metrics through this very session on the whole test split.
        quality_images: Number of those images.
        quality_intervals: The metrics that have a margin, with their intervals; empty in older records.
        drift: How its answers differ from eager fp32's; None where they were not compared, and in older records.
        throughput_timing: Two requests in flight; None where that was not measured.
        end_to_end: Host array in, host array out; None where that was not measured.
        environment: Fingerprint; the rest is in ``environment.json``.
    """

    schema: int = SCHEMA
    run: str
    recorded_at: str
    case: Case
    status: Status
    reason: str = ""
    validity: Validity = ""
    checkpoint_sha256: str = ""
    dataset_digest: str = ""
    converged: bool | None = None
    backend_version: str = ""
    measurement: Measurement | None = None
    parity: Parity | None = None
    quality: Mapping[str, float] = field(default_factory=dict)
    quality_images: int = 0
    primary_metric: str = ""
    timing: Timing | None = None
    environment: str = ""
    throughput_timing: Timing | None = None
    end_to_end: Stages | None = None
    quality_intervals: tuple[Estimate, ...] = ()
    drift: Drift | None = None
    cut_to: str = ""

    @property
    def hardly_fitted(self) -> bool:
        """Return whether the fit ended after a handful of steps, so that its quality says nothing."""
        return self.converged is False and not self.cut_to
