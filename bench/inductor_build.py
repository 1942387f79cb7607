"""What torch's compiler needs on this machine and is told, for both backends that use it."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from bench.backends.base import Availability, installed
from bench.export import cached_file, compute_dtype, example_shape
from bench.records import GRAPH, Case
from lensing_models.precision import set_tf32
from lensing_models.registry import find_task

if TYPE_CHECKING:
    from torch._C._aoti import AOTIModelPackageLoader

    from lensing_models.network import LensNetwork

#: Names the folder of inductor's files.
CACHE_DIR = "TORCHINDUCTOR_CACHE_DIR"
#: The compiler that inductor calls where `CXX` names none (torch/_inductor/config.py, `cpp.cxx`).
DEFAULT_COMPILER = "clang++" if sys.platform == "darwin" else "g++"


def probe_compiler(device: str, *, has_bindings: bool, needs_toolkit: bool = False) -> Availability:
    """Return the version of torch, or what its compiler lacks here; neither torch nor a compiler is started.

    Args:
        device: ``cpu`` or ``cuda``.
        has_bindings: Whether what is compiled is called from Python, and so needs its headers. On CUDA it always
            does: Triton builds what starts its kernels with them.
        needs_toolkit: Whether what is compiled for CUDA is C++ against CUDA's headers, which torch does not bring.
    """
    torch = installed("torch", remedy="pip install torch")
    if torch.reason:
        return torch
    name = compiler_command()[0]
    if shutil.which(name) is None:
        remedy = "install one (Debian: apt install g++) or name it in CXX"
        return Availability(reason=f"torch's inductor calls the C++ compiler {name!r}, which is not found; {remedy}")
    headers = Path(sysconfig.get_path("include"))
    if (has_bindings or device == "cuda") and not (headers / "Python.h").exists():
        remedy = "install them (Debian: apt install python3-dev)"
        return Availability(reason=f"torch's inductor needs Python's headers, and {headers} lacks Python.h; {remedy}")
    if device != "cuda":
        return torch
    if needs_toolkit and find_toolkit() is None:
        remedy = "install NVIDIA's CUDA toolkit and name it in CUDA_HOME"
        return Availability(reason=f"torch's AOTInductor compiles against cuda.h, which is not found; {remedy}")
    triton = installed("triton", "pytorch-triton", remedy="pip install triton")
    return triton if triton.reason else torch


def find_toolkit() -> Path | None:
    """Return the folder of the CUDA toolkit where torch looks for it (torch/utils/cpp_extension.py), if it is there."""
    compiler = shutil.which("nvcc")
    named = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    places = [Path(place) for place in named if place] or [
        *([Path(compiler).resolve().parent.parent] if compiler else []),
        Path("/usr/local/cuda"),
    ]
    return next((place for place in places if (place / "include" / "cuda.h").exists()), None)


def compiler_command() -> list[str]:
    """Return the words of the command of the C++ compiler that inductor calls."""
    return shlex.split(os.environ.get("CXX", "")) or [DEFAULT_COMPILER]


@cache
def describe_machine(device: str) -> str:
    """Return what compiled code depends on beside network and settings: torch, the compiler, what it compiles for."""
    import torch

    answer = subprocess.run([*compiler_command(), "--version"], capture_output=True, text=True, check=True, timeout=60)
    facts: list[object] = [torch.__version__, answer.stdout.splitlines()[0]]
    # What is compiled for the CPU is compiled with -march=native.
    facts += [platform.machine(), torch.backends.cpu.get_cpu_capability(), _cpu_flags()]
    if device == "cuda":
        triton = installed("triton", "pytorch-triton", remedy="").version
        facts += [torch.version.cuda, triton, torch.cuda.get_device_name(), torch.cuda.get_device_capability()]
    return "; ".join(map(str, facts))


def make_ready(network: LensNetwork, case: Case) -> LensNetwork:
    """Return *network*, cast and moved in place, channels last, with TF32 set or cleared for it."""
    import torch

    set_tf32(case.device, allowed=case.precision == "tf32")
    ready = network.set_compute_dtype(compute_dtype(case.precision)).to(case.device)
    return ready.to(memory_format=torch.channels_last)


def compile_settings() -> dict[str, bool | int]:
    """Return what inductor is told, for the threads that torch has now.

    Their number is a constant of the compiled code. As a setting of inductor's it is in the key of its cache
    in every version of torch; left to itself inductor takes it from torch, whose older versions forget that.
    """
    import torch

    threads = torch.get_num_threads()
    return {"freezing": True, "cpp.threads": threads, "compile_threads": threads}


def environment_settings() -> dict[str, str]:
    """Return what the environment tells inductor, by variable, but where it keeps its files."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(("TORCHINDUCTOR_", "AOT_INDUCTOR_")) and name != CACHE_DIR
    }


def aoti_package(network: LensNetwork, case: Case, workdir: Path) -> Path:
    """Return AOTInductor's package of *network* for the precision, batch size and device of *case*.

    It is for the threads that torch has now, and for this machine and compiler.

    Args:
        network: In evaluation mode, fp32, on the CPU; it is cast and moved in place.
        case: What it is for.
        workdir: Folder of derived files; made if missing.

    Raises:
        RuntimeError: If the export or the compiler fails.
    """
    settings = compile_settings()
    use_cache_in(workdir, case.device)
    chosen = f"{settings} {describe_machine(case.device)} {environment_settings()}"
    recipe = f"aoti {case.precision} {case.device} b{case.batch_size} {chosen}"

    def write(path: Path) -> None:
        import torch

        example = torch.rand(example_shape(network, case.batch_size), device=case.device)
        ready = make_ready(network, case)
        # Freezing wants no gradients, and the export no inference mode.
        with torch.inference_mode(False), torch.no_grad():
            program = torch.export.export(ready, (example,))
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)

    return cached_file(network, workdir, recipe, ".pt2", write)


def load_package(path: Path, case: Case, workdir: Path, runners: int) -> AOTIModelPackageLoader:
    """Return the loaded package *path*, which as many callers as it has *runners* may call at once.

    torch unpacks it into a temporary folder, which a process that is killed would leave behind. So that is made
    in *workdir* and removed at once: the library is mapped, and on CUDA a first call of each runner has read its
    kernels.
    """
    import torch
    from torch._inductor.package.package import load_package as load

    with TemporaryDirectory(prefix="unpacked-", dir=workdir) as folder, _environment("TMPDIR", folder):
        # A capture allows no question whether earlier calls are done, as runners ask.
        single = case.has_variant(GRAPH)
        loader: AOTIModelPackageLoader = load(str(path), run_single_threaded=single, num_runners=runners).loader
        if case.device == "cuda":
            shape = (case.batch_size, *find_task(case.task).image_shape)
            # Each runner reads the files of the kernels at its own first call, and torch takes them in turn.
            for _ in range(runners):
                loader.run([torch.rand(shape, device="cuda")])
            torch.cuda.synchronize()
    return loader


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable meanwhile."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def use_cache_in(workdir: Path, device: str) -> Path:
    """Have inductor keep all that it writes under *workdir*, in a folder of this machine's own; return that."""
    from tqdm import tqdm

    machine = hashlib.sha256(describe_machine(device).encode()).hexdigest()[:12]
    folder = (workdir / f"inductor-{machine}").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[CACHE_DIR] = str(folder)
    # Nor start processes before Triton has work for them: they would stand beside what is timed.
    os.environ["TORCH_WARM_POOL"] = "0"
    # The lock of its progress bars is one between processes, which a worker that is killed never gives back.
    tqdm.set_lock(threading.RLock())
    # It warns on every machine without a CUDA runtime.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    return folder


def _cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return what the processor can do, as Linux names it; empty elsewhere."""
    if not cpuinfo.exists():
        return ""
    lines = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() in ("flags", "Features")), "")
