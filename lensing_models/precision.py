"""The TF32 setting of torch's own kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def set_tf32(device: str, allowed: bool) -> None:
    """Allow or forbid TF32 in torch's own kernels; nothing to do but on CUDA.

    torch has two sets of switches for it since 2.9. It refuses to answer whoever asks for the old ones, as
    torch.export and inductor's cache do, once the new ones say otherwise: so both are set.
    """
    if device == "cuda":
        _apply("high" if allowed else "highest", allowed, ["tf32" if allowed else "ieee"] * len(_settings()))


@contextmanager
def without_tf32(device: str) -> Iterator[None]:
    """Forbid TF32 meanwhile, and put the settings back."""
    if device != "cuda":
        yield
        return
    import torch

    parts: list[str] = [setting.fp32_precision for setting in _settings()]  # type: ignore[attr-defined]  # as in _settings
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    set_tf32(device, allowed=False)
    try:
        yield
    finally:
        _apply(products, convolutions, parts)


def _apply(products: str, convolutions: bool, parts: list[str]) -> None:
    """Set the old switches, and then the new ones, which they change."""
    import torch

    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions
    for setting, precision in zip(_settings(), parts, strict=True):
        setting.fp32_precision = precision  # type: ignore[attr-defined]  # as in _settings


def _settings() -> tuple[object, ...]:
    """Return what has the attribute ``fp32_precision``, the whole before its parts; torch's stubs lack some."""
    import torch  # late: backends that are only listed import this module

    cudnn = torch.backends.cudnn
    return torch.backends.cuda.matmul, cudnn, cudnn.conv, cudnn.rnn  # type: ignore[attr-defined]  # see above
