"""Which layers 8 bits cost most: each group of layers alone is quantised, and the worst are kept in fp32."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bench.json_lines import from_json, to_json
from bench.onnx_run import Images, run_graph
from bench.qdq_graph import Quantizer
from bench.quantize import calibration_images
from bench.records import Scalar

if TYPE_CHECKING:
    from lensing_models.network import LensNetwork

#: Part of the key of a sweep; raised when the way of choosing changes.
SWEEP_VERSION = 2
#: Error of the outputs (`output_error`) below which no more layers are kept. At 0.03 ResNet18's classes were within the
#: margin of accuracy on average, and just not surely.
TARGET = 0.02
#: Share of the layers that may be kept; with many more it would not be int8.
MOST_KEPT = 0.4
#: More layers than this are swept block by block, and on so many images only: the sweep of the largest network
#: has to end within the time that a build may take. What it keeps is judged by more.
MOST_GROUPS, FEWER_IMAGES, TRIAL_IMAGES = 64, 8, 32

Outputs = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """What a sweep found; errors are rms differences from fp32 over the spread of the outputs (`output_error`).

    Attributes:
        images: Images of the training split that they are over (`alone` of many layers: over fewer); none of
            these set a range.
        layers: Number of layers.
        plain: Error with every layer in 8 bits.
        alone: Error with this group of layers alone in 8 bits, the largest first.
        kept: Layers kept in fp32.
        mixed: Error with all others in 8 bits.
    """

    images: int
    layers: int
    plain: float
    alone: Mapping[str, float]
    kept: tuple[str, ...]
    mixed: float

    def facts(self) -> dict[str, Scalar]:
        """Return the sweep in short, for the evidence; layers that were swept as a block are named as one."""
        errors = f"error {self.plain:.3f} plain, {self.mixed:.3f} with these in fp32"
        named = [name for name in self.alone if any(f"{layer}.".startswith(f"{name}.") for layer in self.kept)]
        return {
            "kept_fp32": f"{len(self.kept)} of {self.layers} layers: {' '.join(named) or 'none'}",
            "sweep": f"{errors}, on {self.images} training images",
        }


def find_sweep(
    network: LensNetwork, workdir: Path, recipe: str, calibrate: Callable[[], Quantizer]
) -> tuple[Sweep, Path]:
    """Return the sweep of *network*, made once, and the JSON file that holds it.

    Args:
        network: In evaluation mode, fp32, on the CPU, with its `calibration`.
        workdir: Folder of derived files.
        recipe: All that decides on the 8-bit graphs, beside the network.
        calibrate: Returns what makes them.
    """
    from bench.export import cached_file

    def write(path: Path) -> None:
        sweep = make_sweep(calibrate(), calibration_images(network)[1])
        path.write_text(to_json(sweep) + "\n", encoding="utf-8")

    rule = f"sweep {SWEEP_VERSION} {TARGET} {MOST_KEPT} {MOST_GROUPS} {FEWER_IMAGES} {TRIAL_IMAGES}"
    path = cached_file(network, workdir, f"{rule} {recipe}", ".sweep.json", write)
    return from_json(Sweep, path.read_text(encoding="utf-8")), path


def make_sweep(quantizer: Quantizer, images: Images) -> Sweep:
    """Return which layers of *quantizer*'s graph are to stay fp32, by their effect on *images*."""
    is_large = len(quantizer.layers) > MOST_GROUPS
    images = images[: TRIAL_IMAGES if is_large else None]
    exact = run_graph(quantizer.model, images)

    def error_of(keep: Collection[str] = (), only: Collection[str] | None = None, most: int | None = None) -> float:
        return output_error(run_graph(quantizer.quantize(keep, only), images[:most]), exact[:most])

    groups = group_layers(list(quantizer.layers))
    most = FEWER_IMAGES if is_large else None
    alone = {name: error_of(only=layers, most=most) for name, layers in groups.items()}
    ranked = sorted(groups, key=lambda name: -alone[name])
    plain = error_of()
    kept, mixed = choose_kept(
        [groups[name] for name in ranked], len(quantizer.layers), lambda keep: error_of(keep) if keep else plain
    )
    return Sweep(
        images=len(images),
        layers=len(quantizer.layers),
        plain=plain,
        alone={name: alone[name] for name in ranked},
        kept=kept,
        mixed=mixed,
    )


def choose_kept(
    ranked: Sequence[Sequence[str]], layers: int, error_of: Callable[[Sequence[str]], float]
) -> tuple[tuple[str, ...], float]:
    """Return the layers to keep and the error that is left.

    Groups are kept from the worst on, each time about half as many more, until the error is below
    `TARGET`; if it never is while no more than `MOST_KEPT` of the layers are kept, the best of these
    trials. None are kept where the error is below it anyway.

    Args:
        ranked: Groups of layers, the worst first.
        layers: Number of layers.
        error_of: The error with these layers kept.
    """
    counts = list(accumulate(len(group) for group in ranked))
    most = sum(count <= MOST_KEPT * layers for count in counts)
    best: tuple[tuple[str, ...], float] = ((), np.inf)
    count = 0
    while True:
        kept = tuple(layer for group in ranked[:count] for layer in group)
        error = error_of(kept)
        if error < best[1]:
            best = kept, error
        if error < TARGET or count == most:
            return best
        count = min(most, count + max(1, count // 2))


def group_layers(layers: Sequence[str]) -> dict[str, list[str]]:
    """Return the groups that are swept: each layer alone, or, of more than `MOST_GROUPS`, each block.

    A block is what the names have in common up to their last number: ``blocks.4.2.se.conv_reduce`` is of
    ``blocks.4.2``.
    """
    groups: dict[str, list[str]] = {}
    for layer in layers:
        block = re.match(r".*\.\d+(?=\.|$)", layer)
        name = block[0] if block and len(layers) > MOST_GROUPS else layer
        groups.setdefault(name, []).append(layer)
    return groups


def output_error(outputs: Outputs, exact: Outputs) -> float:
    """Return the rms difference of *outputs* (N, K) from the *exact* ones over the rms spread of these.

    Both are of each output around its mean over the images: what all answers have in common, as the mean mass of a
    regression, is no information, and `Quantizer.save` puts it back.
    """
    spread, difference = (np.mean(np.var(one, axis=0, dtype=np.float64)) for one in (exact, outputs - exact))
    return float(np.sqrt(difference / spread))
