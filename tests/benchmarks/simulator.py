"""Rate of the simulator beside lenstronomy's, noiseless, on one core, in one run.

Run it from the repository's root with the extra ``oracle`` installed:

    python -m tests.benchmarks.simulator

They take turns on the same lenses; printed are the medians of the rates over the rounds and the
medians of the ratios, round by round. lenstronomy is timed twice: with its model built for each lens,
as the authors' code does, and with one model for all, which serves where their parts are equal in
number. The rod is 100 points for lenstronomy, which has none.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from lensing_models.data.draw import draw_lens
from lensing_models.data.lens import Lens
from lensing_models.data.lenses import render_for
from lensing_models.data.sky import SKIES, Sky
from lensing_models.registry import find_task
from tests.lensing_models.data.make_reference import build_model, image_by_lenstronomy, point_masses

ROUNDS, LENSES = 9, 8
ROD_POINTS = 100
#: The least that the design asks for.
DEMANDED = {"no": 3.5, "sphere": 5.0, "vort": 15.0}


def seconds(works: list[Callable[[], object]]) -> float:
    """Return the wall time of *works*, one after the other [s]."""
    started = time.perf_counter()
    for work in works:
        work()
    return time.perf_counter() - started


def build_and_image(sky: Sky, lens: Lens, points: list[tuple[float, float, float]]) -> np.ndarray:
    """Return lenstronomy's image of *lens* by a model of its own."""
    return image_by_lenstronomy(build_model(len(points), sky), lens, points)


def draw_lenses(lens_class: str) -> list[Lens]:
    """Return lenses of one class; those with subhalos have 25 each, for which the rate is stated."""
    rng = np.random.default_rng(0)
    drawn = (draw_lens(SKIES["model_i"], lens_class, rng) for _ in range(1000))
    fitting = (lens for lens in drawn if lens_class != "sphere" or len(lens.subhalos) == 25)
    return list(itertools.islice(fitting, LENSES))


def main() -> None:
    """Print one line a class."""
    torch.set_num_threads(1)
    task, sky = find_task("substructure"), SKIES["model_i"]
    for lens_class, demanded in DEMANDED.items():
        lenses = draw_lenses(lens_class)
        points = [point_masses(lens, ROD_POINTS) for lens in lenses]
        model = build_model(len(points[0]), sky)
        works = {
            "ours": [partial(render_for, task, sky, [lens]) for lens in lenses],
            "anew": [partial(build_and_image, sky, *pair) for pair in zip(lenses, points, strict=True)],
            "reused": [partial(image_by_lenstronomy, model, *pair) for pair in zip(lenses, points, strict=True)],
        }
        # The first round warms up both.
        times = [{name: seconds(work) for name, work in works.items()} for _ in range(ROUNDS + 1)][1:]
        rates = {name: LENSES / statistics.median(each[name] for each in times) for name in works}
        ratios = {name: statistics.median(each[name] / each["ours"] for each in times) for name in works}
        print(
            f"{lens_class:>6}: {rates['ours']:6.0f} images/s; lenstronomy {rates['anew']:5.0f}, "
            f"ratio {ratios['anew']:5.1f} (at least {demanded} is demanded); "
            f"with its model reused {rates['reused']:5.0f}, ratio {ratios['reused']:5.1f}"
        )


if __name__ == "__main__":
    main()
