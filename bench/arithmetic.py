"""How much arithmetic a network is, whatever runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def count_flop(network: torch.nn.Module, images: torch.Tensor) -> float:
    """Return the floating-point operations of *network* for *images* (B, C, H, W), a multiply-add being two.

    Counted are convolutions and matrix products (torch.utils.flop_counter), as its eager fp32 form makes
    them; additions of biases, normalisation, activations and the resize are not.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(images)
    return float(counter.get_total_flops())
