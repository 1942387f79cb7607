"""The most that a device does: matrix product, convolution and copy, by the clock of everything else."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.backends.base import LocalSession
from bench.machine_facts import PRODUCT, PRODUCT_OR_CONVOLUTION, Ceilings
from bench.measure import BlockPlan, Clock
from bench.process import Oversight, Worker, WorkerError
from bench.records import Scalar
from lensing_models.precision import set_tf32

if TYPE_CHECKING:
    import torch

    from bench.job import Job

#: Precisions of the matrix product that torch has on a device.
PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "cpu": ("fp32", "bf16"),
    "cuda": ("fp32", "tf32", "bf16", "fp16", "int8"),
}
COPY = "copy"
BLOCKS = 4
BLOCK = BlockPlan(block_s=0.1, calls=2, discards=1, warmup_s=0.0)
#: Sides of the square matrices, the faster of which counts: large enough that the product is bound by
#: arithmetic, and small enough for the caches (with AMX, 1024 is faster than 2048). More than
#: `FEW_THREADS` need more to share.
SIDES = {"cpu": (1024, 2048), "many": (2048, 4096), "cuda": (4096, 8192)}
#: Images of a convolution like those of a ResNet's middle, 3 x 3, channels last, each of whose operations is
#: carried out. None on CUDA, where cuDNN may choose an algorithm with fewer.
IMAGES = {"cpu": 8, "many": 64, "cuda": 0}
CHANNELS, PIXELS = 256, 28
FEW_THREADS = 8
#: Bytes that are copied: more than most caches hold.
COPIED_BYTES = {"cpu": 2**28, "cuda": 2**30}
#: Seconds without an answer after which a ceiling is given up.
PATIENCE_S = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How large the work of one call is."""

    sides: tuple[int, ...]
    images: int
    copied_bytes: int


def size_for(device: str, threads: int) -> Size:
    """Return the size of work that fills *device*."""
    kind = "many" if device == "cpu" and threads > FEW_THREADS else device
    return Size(sides=SIDES[kind], images=IMAGES[kind], copied_bytes=COPIED_BYTES[device])


class Product(LocalSession):
    """A product of square matrices in one precision."""

    def __init__(self, precision: str, device: str, side: int) -> None:
        import torch

        self._device, self._work = device, 2.0 * side**3
        set_tf32(device, allowed=precision == "tf32")
        self.left, right = (_matrix(precision, device, side) for _ in range(2))
        # The layout that cuBLAS wants of int8: the right matrix column by column.
        self.right = right.t() if precision == "int8" else right
        whole = torch.int32 if precision == "int8" else self.left.dtype
        self._out = torch.empty(side, side, dtype=whole, device=device)
        self._multiply = torch._int_mm if precision == "int8" else torch.mm

    @property
    def work(self) -> float:
        """Return the floating-point operations of a call, a multiply-add being two."""
        return self._work

    def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
        """Return the product of *images*, the left matrix, with the right one."""
        return self._multiply(images, self.right, out=self._out)

    def synchronize(self, slot: int | None = None) -> None:
        """Wait for the device."""
        _wait(self._device)

    def evidence(self) -> Mapping[str, Scalar]:
        """Return nothing: the dtypes were ours to choose."""
        return {}


class Convolution(LocalSession):
    """A 3 x 3 convolution on a CPU in one precision."""

    def __init__(self, precision: str, images: int) -> None:
        import torch

        shapes = (images, CHANNELS, PIXELS, PIXELS), (CHANNELS, CHANNELS, 3, 3)
        dtype = _float_type(precision)
        self.left, self.weights = (
            torch.randn(shape).to(dtype=dtype, memory_format=torch.channels_last) for shape in shapes
        )

    @property
    def work(self) -> float:
        """Return the floating-point operations of a call, those on the padding included."""
        return 2.0 * self.left.numel() * self.weights[0].numel()

    def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
        """Return *images* (N, C, H, W) convolved, of the same shape."""
        import torch

        return torch.nn.functional.conv2d(images, self.weights, padding=1)

    def synchronize(self, slot: int | None = None) -> None:
        """Return at once: a CPU is done."""

    def evidence(self) -> Mapping[str, Scalar]:
        """Return nothing: the dtypes were ours to choose."""
        return {}


class Copy(LocalSession):
    """A copy within the device's memory."""

    def __init__(self, device: str, copied_bytes: int) -> None:
        import torch

        self._device = device
        self.left = torch.rand(copied_bytes // 4, device=device)
        self._out = torch.empty_like(self.left)

    @property
    def work(self) -> float:
        """Return the bytes that a call reads and writes."""
        return 2.0 * self.left.nbytes

    def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
        """Copy *images*."""
        return self._out.copy_(images)

    def synchronize(self, slot: int | None = None) -> None:
        """Wait for the device."""
        _wait(self._device)

    def evidence(self) -> Mapping[str, Scalar]:
        """Return nothing."""
        return {}


def measure_ceiling(kind: str, device: str, threads: int, size: Size | None = None) -> float:
    """Return the work per second of the best of `BLOCKS` short blocks [FLOP/s, or B/s for a copy].

    A ceiling is a maximum: what disturbed a block only lowers it, so the block with the shortest median counts.

    Args:
        kind: A precision, or ``copy``.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads.
        size: Of one call; default: what fills the device.
    """
    import torch

    torch.set_num_threads(threads)
    size = size or size_for(device, threads)
    with torch.inference_mode():
        if kind == COPY:
            return best_rate(Copy(device, size.copied_bytes))
        rates = [best_rate(Product(kind, device, side)) for side in size.sides]
        if size.images:
            rates.append(best_rate(Convolution(kind, size.images)))
        return max(rates)


def best_rate(session: Product | Convolution | Copy) -> float:
    """Return the work per second of *session* in the best of its blocks."""
    clock = Clock(session, [session.left], BLOCK)
    return session.work / min(statistics.median(clock.block()) for _ in range(BLOCKS))


def measure_ceilings(job: Job, size: Size | None = None, oversight: Oversight | None = None) -> Ceilings:
    """Return the ceilings of the device of *job*, measured in a process of their own, by work of *size*."""
    kinds = (*PRECISIONS[job.case.device], COPY)
    found: dict[str, float] = {}
    failures: dict[str, str] = {}
    worker = Worker(job, oversight)
    try:
        for kind in kinds:
            if worker.ended:  # one kind that a device cannot do is not to cost the others
                worker = worker.restarted()
            try:
                found[kind] = worker.ask("ceiling", kind, size, patience_s=PATIENCE_S)
            except WorkerError as error:
                failures[kind] = " ".join(str(error).split())
    finally:
        worker.close()
    return Ceilings(
        device=job.case.device,
        threads=job.case.threads,
        copy_b_s=found.pop(COPY, None),
        matmul_flop_s=found,
        arithmetic=PRODUCT_OR_CONVOLUTION if job.case.device == "cpu" else PRODUCT,
        failures=failures,
    )


def _matrix(precision: str, device: str, side: int) -> torch.Tensor:
    """Return random numbers (side, side): zeros would draw less power and clock higher."""
    import torch

    if precision == "int8":
        return torch.randint(-128, 128, (side, side), dtype=torch.int8, device=device)
    return torch.randn(side, side, device=device).to(_float_type(precision))


def _float_type(precision: str) -> torch.dtype:
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
