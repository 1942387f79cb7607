"""Network -> TorchScript or ONNX file, cached by the digest of its weights and of how it was made."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

if TYPE_CHECKING:
    import torch

    from lensing_models.network import LensNetwork

#: 22 is the first opset whose Conv takes bfloat16 (ONNX operator changelog, Conv-22).
OPSET = 22
#: Part of every file's key; raised when `LensNetwork` or the way of exporting changes.
EXPORT_VERSION = 1
#: Packages that have a hand in an exported file.
MAKERS = ("torch", "timm", "onnx", "onnxscript", "onnx-ir")
#: Name of the dimension of an ONNX file that stays open.
BATCH = "batch"
#: By file, whether it was there when this process last asked for it.
_FOUND: dict[Path, bool] = {}


def compute_dtype(precision: str) -> torch.dtype:
    """Return the dtype of the backbone at *precision*; tf32 is a way to multiply fp32 numbers."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


def network_digest(network: LensNetwork) -> str:
    """Return the SHA-256 of names, dtypes and values of every tensor of *network*."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else b"")
    return digest.hexdigest()


def onnx_file(network: LensNetwork, workdir: Path, precision: str = "fp32") -> Path:
    """Return a checked ONNX file of *network* with input ``images`` and output ``outputs``.

    The batch is dynamic. The precision lives in the graph: for fp16 the backbone is cast, images
    and outputs stay float32; tf32 and fp32 share one file.

    Args:
        network: In evaluation mode, fp32, on the CPU; for fp16 it is cast in place.
        workdir: Folder of derived files; made if missing.
        precision: ``fp32``, ``tf32`` or ``fp16``.

    Raises:
        RuntimeError: If the export or the full check of the model fails.
    """
    dtype = compute_dtype(precision)
    recipe = f"onnx opset {OPSET} {dtype}" + ("" if precision in ("fp32", "tf32") else " constants folded")

    def write(path: Path) -> None:
        _write_onnx(network.set_compute_dtype(dtype), path)

    return cached_file(network, workdir, recipe, ".onnx", write)


def torchscript_file(network: LensNetwork, workdir: Path, precision: str, device: str) -> Path:
    """Return a traced and frozen TorchScript file of *network*, channels last, for *device*.

    Args:
        network: In evaluation mode, fp32, on the CPU; it is cast and moved in place.
        workdir: Folder of derived files; made if missing.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        device: ``cpu`` or ``cuda``.
    """
    import torch

    dtype = compute_dtype(precision)
    recipe = f"torchscript {dtype} {device}"

    def write(path: Path) -> None:
        ready = network.set_compute_dtype(dtype).to(device).to(memory_format=torch.channels_last)
        example = torch.rand(example_shape(network), device=device)
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            # TorchScript is deprecated and says so at each call; measuring it is our purpose.
            warnings.simplefilter("ignore", (FutureWarning, DeprecationWarning))
            traced = torch.jit.trace(ready, example, check_trace=False)  # type: ignore[no-untyped-call]  # torch's own
            torch.jit.save(torch.jit.freeze(traced.eval()), str(path))

    return cached_file(network, workdir, recipe, ".pt", write)


def was_cached(path: Path) -> bool:
    """Return whether the exported file *path* was there, or made by another, when this process last got it."""
    return _FOUND[path]


def example_shape(network: LensNetwork, batch_size: int = 2) -> tuple[int, int, int, int]:
    """Return the shape of *batch_size* images; where it is to stay open, one would be taken for a constant."""
    stem = next(weight for weight in network.backbone.parameters() if weight.dim() == 4)
    return (batch_size, stem.shape[1], network.image_size, network.image_size)


def cached_file(network: LensNetwork, workdir: Path, recipe: str, suffix: str, write: Callable[[Path], None]) -> Path:
    """Return the file of *recipe* for *network*, written once whoever asks first; again if damaged.

    Args:
        network: Its weights and sizes are part of the file's key, and the versions of `MAKERS`.
        workdir: Folder of derived files; made if missing.
        recipe: Whatever else decides on the content.
        suffix: Of the file's name.
        write: Writes the file to a path of that suffix.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    versions = " ".join(importlib.metadata.version(name) for name in MAKERS)
    sizes = f"{network.image_size} {network.input_size}"
    ingredients = f"{EXPORT_VERSION} {recipe} {versions} {sizes} {network_digest(network)}"
    key = hashlib.sha256(ingredients.encode()).hexdigest()[:24]
    path, digest = workdir / f"{key}{suffix}", workdir / f"{key}.sha256"
    with FileLock(workdir / f"{key}.lock"):
        # Behind the lock: who waited for another's export made nothing, and has no build time of its own.
        _FOUND[path] = path.exists() and digest.exists() and digest.read_text(encoding="ascii") == _file_sha256(path)
        if not _FOUND[path]:
            unfinished = path.with_name(f"{key}.unfinished{suffix}")
            write(unfinished)
            digest.write_text(_file_sha256(unfinished), encoding="ascii")
            unfinished.replace(path)
    return path


def _file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_onnx(network: LensNetwork, path: Path) -> None:
    import onnx
    import onnxscript.optimizer
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    dtype = network.compute_dtype
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        # torch, onnxscript and copyreg warn of each other's deprecations during an export.
        warnings.simplefilter("ignore", (FutureWarning, DeprecationWarning, UserWarning))
        program = torch.onnx.export(
            network,
            (torch.rand(example_shape(network)),),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim(BATCH)},),
            input_names=["images"],
            output_names=["outputs"],
            external_data=False,
            # BatchNorm folded by the optimiser leaves fp32 weights beside 16-bit ones.
            optimize=dtype == torch.float32,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    if dtype != torch.float32:
        # Without its optimiser the export computes a bias of zeros for each convolution, in seven operations each.
        onnxscript.optimizer.fold_constants(program.model)
        onnxscript.optimizer.remove_unused_nodes(program.model)
    program.save(str(path), external_data=False)
    # The plain check passes models with mixed types that no runtime takes; the full one does not.
    onnx.checker.check_model(str(path), full_check=True)
