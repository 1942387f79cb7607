"""The TF32 setting of torch's own kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def set_tf32(device: str, allowed: bool) -> None:
    """Allow or forbid TF32 in torch's own kernels; nothing to do but on CUDA.

    Only the `fp32_precision` settings are used (torch >= 2.9): torch refuses to run once they are
    mixed with the old switches.
    """
    if device != "cuda":
        return
    for setting in _settings():
        setting.fp32_precision = "tf32" if allowed else "ieee"  # type: ignore[attr-defined]  # as in _settings


@contextmanager
def without_tf32(device: str) -> Iterator[None]:
    """Forbid TF32 meanwhile, and put the setting back."""
    before = [setting.fp32_precision for setting in _settings()]  # type: ignore[attr-defined]  # as in _settings
    set_tf32(device, allowed=False)
    try:
        yield
    finally:
        if device == "cuda":
            for setting, precision in zip(_settings(), before, strict=True):
                setting.fp32_precision = precision  # type: ignore[attr-defined]  # as in _settings


def _settings() -> tuple[object, ...]:
    """Return what has the attribute ``fp32_precision``; the stubs of torch 2.15 lack that of cuDNN's parts."""
    import torch  # late: backends that are only listed import this module

    cudnn = torch.backends.cudnn
    return torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn  # type: ignore[attr-defined]  # see above
