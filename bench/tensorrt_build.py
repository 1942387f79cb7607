"""ONNX file -> TensorRT engine by one path for TensorRT 10.13 and 11.x; engines are kept by key.

The network is always strongly typed: precision lives in the graph, TF32 is the only switch. Names of
TensorRT objects are annotated throughout: the bindings publish no types, and the contract test
follows these annotations into each binding.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from bench.memory import is_out_of_memory

if TYPE_CHECKING:
    import tensorrt as trt

#: Characters of a message that are told.
LONGEST = 500
#: What the builder says of a layer, or of several made one, for which it has no kernel.
NO_KERNEL = "Could not find any implementation"
#: TensorRT's own default of the level below.
DEFAULT_LEVEL = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildArguments:
    """What the builder is told beside the graph.

    Attributes:
        batch_size: Images in a batch; the one profile has it as minimum, optimum and maximum.
        tf32: Whether float32 products may be rounded to TF32; TensorRT's own default is yes.
        optimization_level: 0 to 5; 3 is TensorRT's default.
        build: Number of the build: builds may differ, for the builder times kernels on a machine that is never quite
            the same, so that several are made and measured.
    """

    batch_size: int
    tf32: bool
    optimization_level: int = DEFAULT_LEVEL
    build: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineHost:
    """The machine that an engine is built for and runs on; it runs on no other."""

    tensorrt: str
    gpu: str
    compute_capability: tuple[int, int]
    driver: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """A serialized engine.

    Attributes:
        key: Digest of everything that it was made from.
        plan: TensorRT's serialized form.
        reused: Whether it was found on the disk instead of being built.
        had_timings: Whether it was built with times of kernels that earlier builds had left; None where that is not
            known.
    """

    key: str
    plan: bytes
    reused: bool
    had_timings: bool | None


def engine_key(onnx_sha256: str, arguments: BuildArguments, host: EngineHost) -> str:
    """Return the SHA-256 of the graph, the build arguments and the host, as hexadecimal digits."""
    ingredients = [onnx_sha256, dataclasses.asdict(arguments), dataclasses.asdict(host)]
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


def find_or_build(onnx_file: Path, arguments: BuildArguments, host: EngineHost, workdir: Path) -> Engine:
    """Return the engine of *onnx_file* from *workdir*, building it if it is not there or damaged.

    Raises:
        RuntimeError: If TensorRT cannot build it, or could not before for want of a kernel; the message holds
            TensorRT's own.
    """
    key = engine_key(hashlib.sha256(onnx_file.read_bytes()).hexdigest(), arguments, host)
    path = workdir / f"{key}.plan"
    workdir.mkdir(parents=True, exist_ok=True)
    # One builder at a time: two on a GPU would disturb each other's times of the kernels.
    with FileLock(workdir / "tensorrt.lock"):
        plan, story = read_plan(path), path.with_suffix(".story")
        if plan is not None:
            # Whoever built it has ended: a session is timed in a process that found its engine.
            told = {b"used": True, b"empty": False}.get(read_plan(story) or b"")
            return Engine(key=key, plan=plan, reused=True, had_timings=told)
        refused = path.with_suffix(".refused")
        if (reason := read_plan(refused)) is not None:
            raise RuntimeError(reason.decode())
        timings = timing_file(arguments, host, workdir)
        known = read_plan(timings) or b""
        try:
            plan, timed = build_plan(onnx_file, arguments, known)
        except RuntimeError as error:
            if lacks_kernel(str(error)):
                # It would be tried again by every process that wants it, for minutes.
                write_plan(refused, str(error).encode())
            raise
        write_plan(story, b"used" if known else b"empty")
        write_plan(path, plan)
        write_plan(timings, timed)
        return Engine(key=key, plan=plan, reused=False, had_timings=bool(known))


def lacks_kernel(reason: str) -> bool:
    """Return whether TensorRT could not build an engine for want of a kernel, and not of memory for one."""
    return NO_KERNEL in reason and not is_out_of_memory(reason)


def timing_file(arguments: BuildArguments, host: EngineHost, workdir: Path) -> Path:
    """Return the file of the times that the builder has taken of kernels on *host*, which later builds need not take.

    Each number of build has its own: with another's times it would make another's choices, and the spread
    between builds would be that of one.
    """
    name = json.dumps([dataclasses.asdict(host), arguments.build], sort_keys=True)
    return workdir / f"{hashlib.sha256(name.encode()).hexdigest()}.timings"


def write_plan(path: Path, plan: bytes) -> None:
    """Write *plan* and, beside it, its digest; a reader never sees half of either."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(_digest_file(path), hashlib.sha256(plan).hexdigest().encode())
    _replace(path, plan)


def read_plan(path: Path) -> bytes | None:
    """Return the plan at *path*, or None if there is none or it is not what was written.

    TensorRT runs the machine code of whatever plan it is given, so a damaged one is never loaded.
    """
    if not path.exists() or not _digest_file(path).exists():
        return None
    plan = path.read_bytes()
    if hashlib.sha256(plan).hexdigest() != _digest_file(path).read_text(encoding="ascii", errors="replace"):
        logging.getLogger(__name__).warning("%s does not match its digest and is built anew", path.name)
        return None
    return plan


def _digest_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _replace(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def build_plan(onnx_file: Path, arguments: BuildArguments, timings: bytes = b"") -> tuple[bytes, bytes]:
    """Return the plan that TensorRT builds of *onnx_file*, and the times of kernels that it knows then.

    Args:
        onnx_file: The graph.
        arguments: What the builder is told.
        timings: Times that an earlier build on this host has left, a serialized `ITimingCache`; empty for none.

    Raises:
        RuntimeError: If TensorRT has no builder here, cannot parse the graph or cannot build it.
    """
    import tensorrt as trt

    errors: list[str] = []
    logger: trt.ILogger = collecting_logger(errors)
    try:
        builder: trt.Builder = trt.Builder(logger)
    except TypeError as error:  # the bindings' word for a null pointer
        raise failure("create a builder", errors) from error
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)  # bit 1 in 10, bit 0 in 11
    network: trt.INetworkDefinition = builder.create_network(strongly_typed)
    parser: trt.OnnxParser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_file)):
        # What the parser logs beside them is the whole node, line by line.
        raise failure(f"parse {onnx_file.name}", _parser_errors(parser) or errors)
    config: trt.IBuilderConfig = _configure(builder, network, arguments)
    cache: trt.ITimingCache = config.create_timing_cache(timings)
    # False: times of another GPU or another TensorRT are refused, and taken anew.
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        if not config.set_timing_cache(cache, False):
            raise failure("take an empty timing cache", errors)
    plan: trt.IHostMemory = builder.build_serialized_network(network, config)
    if plan is None:
        raise failure("build an engine", errors)
    filled: trt.ITimingCache = config.get_timing_cache()
    known: trt.IHostMemory = filled.serialize()
    return bytes(memoryview(plan)), bytes(memoryview(known))


def _configure(builder: trt.Builder, network: trt.INetworkDefinition, arguments: BuildArguments) -> trt.IBuilderConfig:
    import tensorrt as trt

    config: trt.IBuilderConfig = builder.create_builder_config()
    config.builder_optimization_level = arguments.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # lets the inspector tell layer types
    if arguments.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    profile: trt.IOptimizationProfile = builder.create_optimization_profile()
    images: trt.ITensor = network.get_input(0)
    shape = (arguments.batch_size, *tuple(images.shape)[1:])
    profile.set_shape(images.name, shape, shape, shape)
    if config.add_optimization_profile(profile) < 0:
        raise failure(f"add a profile of shape {shape}", [])
    return config


def _parser_errors(parser: trt.OnnxParser) -> list[str]:
    errors: list[trt.ParserError] = [parser.get_error(index) for index in range(parser.num_errors)]
    return [f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors]


def collecting_logger(errors: list[str]) -> trt.ILogger:
    """Return a TensorRT logger that appends each message of severity ERROR or worse to *errors*.

    Of a warning it does so where that is of memory: that there was too little for a kernel is no more to TensorRT.
    """
    import tensorrt as trt

    class CollectingLogger(trt.ILogger):  # type: ignore[misc]  # TensorRT publishes no types
        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            is_error = severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)
            if is_error or (severity == trt.ILogger.WARNING and is_out_of_memory(msg)):
                errors.append(msg)

    return CollectingLogger()


def failure(what: str, errors: Sequence[str]) -> RuntimeError:
    """Return the error for a step that TensorRT refused, with the last of its messages, and the last one of memory."""
    last = list(errors[-3:])
    of_memory = [message for message in errors[:-3] if is_out_of_memory(message)]
    said = "; ".join(message[:LONGEST] for message in [*of_memory[-1:], *last]) or "TensorRT logged no error"
    return RuntimeError(f"TensorRT could not {what}: {said}")


def engine_host() -> EngineHost:
    """Return the host that torch's current CUDA device makes.

    Raises:
        RuntimeError: If torch sees no CUDA device or the driver does not tell its version.
    """
    import pynvml
    import tensorrt as trt
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("torch sees no CUDA device, which TensorRT needs; install torch with CUDA, see pytorch.org")
    try:
        pynvml.nvmlInit()
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise RuntimeError(f"the NVIDIA driver does not tell its version: {error}") from error
    return EngineHost(
        tensorrt=str(trt.__version__),
        gpu=torch.cuda.get_device_name(),
        compute_capability=torch.cuda.get_device_capability(),
        driver=driver,
    )
