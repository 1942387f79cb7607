"""Hardware, driver, versions and revision: what a number needs beside it to mean something."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

import psutil

from bench.records import Environment, Scalar

PACKAGES = (
    "lensing-bench",
    "torch",
    "torchvision",
    "timm",
    "lightning",
    "onnx",
    "onnxscript",
    "onnx-ir",
    "onnxruntime-gpu",
    "onnxruntime",
    "openvino",
    "mlcommons-loadgen",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "numpy",
)


#: Facts that tell no other machine: software, and settings that change from hour to hour.
PASSING = frozenset({"driver", "frequency_mhz", "max_frequency_mhz", "governor"})


def describe_environment(device: str, threads: int) -> Environment:
    """Return what this machine is; torch is asked for *device* ``cuda`` only, which GPU it uses."""
    hardware = {**_processor(), **(_accelerator() if device == "cuda" else {})}
    return Environment(
        fingerprint=fingerprint(hardware, device, threads),
        hardware=hardware,
        versions=_versions(),
        revision=_revision(),
        platform=platform.platform(),
    )


def fingerprint(hardware: dict[str, Scalar], device: str, threads: int) -> str:
    """Return the digest of hardware and thread count; software is reported, not matched."""
    # The memory that the kernel reports differs by a few pages between boots.
    facts = {name: value for name, value in hardware.items() if name not in PASSING | {"memory_bytes"}}
    facts["memory_gib"] = round(int(hardware.get("memory_bytes") or 0) / 2**30)
    text = json.dumps({"hardware": facts, "device": device, "threads": threads}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _processor() -> dict[str, Scalar]:
    return {
        "processor": _processor_name(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "logical_cores": os.cpu_count(),
        "matrix_extensions": " ".join(_matrix_extensions()),
        "memory_bytes": psutil.virtual_memory().total,
        **_frequency(),
    }


def _frequency(cpufreq: Path = Path("/sys/devices/system/cpu/cpu0/cpufreq")) -> dict[str, Scalar]:
    """Return the clock at this moment, its greatest [MHz] and the governor; what is not told is left out."""
    try:
        clock = psutil.cpu_freq()
    except (OSError, NotImplementedError):  # psutil's answer where the kernel shows no clock
        clock = None
    governor = cpufreq / "scaling_governor"
    facts: dict[str, Scalar] = {
        "frequency_mhz": round(clock.current) if clock else 0,
        "max_frequency_mhz": round(clock.max) if clock else 0,
        "governor": governor.read_text(encoding="ascii").strip() if governor.exists() else "",
    }
    return {name: value for name, value in facts.items() if value}


def _cpuinfo(field: str) -> str:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return ""
    lines = (line.partition(":") for line in path.read_text(encoding="utf-8").splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == field), "")


def _processor_name() -> str:
    # A virtual machine may hide the model's name; family and model number still tell the core.
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    family, model = _cpuinfo("cpu family"), _cpuinfo("model")
    return f"{name} (family {family} model {model})" if family else name


def _matrix_extensions() -> list[str]:
    """Return the instruction sets that decide which precision is fast."""
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "amx_fp16")
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return [flag for flag in wanted if flag in flags]


def _accelerator() -> dict[str, Scalar]:
    """Return name, memory and driver of the GPU that torch uses, by NVML; empty where NVML has none."""
    from bench.device_state import open_monitor

    return {**open_monitor().describe()}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _revision() -> str:
    """Return the git revision of the suite's own tree, or ``unknown`` outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()
