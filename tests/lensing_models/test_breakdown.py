"""A dependence that was planted is found, and none where there is none."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from lensing_models.breakdown import break_down, render_breakdown, true_parameters
from lensing_models.registry import find_task
from lensing_models.specs import TaskSpec

CLASSES, MASS = find_task("substructure"), find_task("halo_mass")
N = 1500


def make_catalog(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    names = np.array(["no", "sphere", "vort"])[np.arange(N) % 3]
    return pd.DataFrame(
        {
            "split": "test",
            "index": np.arange(N),
            "label": np.arange(N) % 3,
            "class": names,
            "theta_E": rng.normal(1.3, 0.1, N),
            "exposure": rng.uniform(1, 2, N),
            "light_amp": 0.0,
            "vortex_mass": np.where(names == "vort", rng.uniform(1, 3, N), np.nan),
        }
    )


def answers(label: NDArray[np.int64], wrong: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return logits that are right but where *wrong*."""
    return np.eye(3, dtype=np.float32)[np.where(wrong, (label + 1) % 3, label)]


def test_errors_that_come_with_low_mass_are_traced_to_it() -> None:
    catalog = make_catalog()
    wrong = (catalog["vortex_mass"] < catalog["vortex_mass"].quantile(0.2)).to_numpy()

    first = break_down(CLASSES, catalog, answers(catalog["label"].to_numpy(), wrong))[0]

    assert (first.lens_class, first.parameter) == ("vort", "vortex_mass")
    assert first.errors[0] == pytest.approx(1.0)
    assert first.errors[1:] == pytest.approx((0, 0, 0, 0), abs=0.02)
    assert sum(first.images) == N // 3
    assert first.edges[0] == pytest.approx(catalog["vortex_mass"].min())


@pytest.mark.parametrize("task", [CLASSES, MASS])
def test_errors_by_chance_are_traced_to_nothing(task: TaskSpec) -> None:
    reported = 0
    for seed in range(20):
        catalog, rng = make_catalog(seed), np.random.default_rng((seed, 1))
        if task is CLASSES:
            outputs = answers(catalog["label"].to_numpy(), rng.random(N) < 0.1)
        else:
            catalog["label"] = rng.uniform(0.01, 0.1, N)
            outputs = np.log10(catalog["label"].to_numpy() + rng.normal(0, 1e-3, N)).astype(np.float32)[:, None]
        reported += any(row.q_value <= 0.05 for row in break_down(task, catalog, outputs))

    # At most one in twenty is expected; more than four of twenty has a probability of 0.3 %.
    assert reported <= 4


def test_a_larger_scatter_of_a_regression_is_found() -> None:
    catalog, rng = make_catalog(), np.random.default_rng(3)
    catalog["class"], catalog["label"] = "sphere", rng.uniform(0.02, 0.1, N)
    spread = np.where(catalog["exposure"] < catalog["exposure"].quantile(0.2), 5e-3, 1e-3)
    outputs = np.log10(catalog["label"].to_numpy() + rng.normal(0, 1, N) * spread)[:, None]

    first = break_down(MASS, catalog, outputs)[0]

    assert first.parameter == "exposure"
    assert first.errors == pytest.approx((5e-3, 1e-3, 1e-3, 1e-3, 1e-3), rel=0.15)


def test_a_parameter_that_never_varies_is_left_out() -> None:
    assert "light_amp" not in {
        row.parameter for row in break_down(CLASSES, make_catalog(), np.eye(3)[np.zeros(N, int)])
    }


def test_derived_parameters_have_their_geometry() -> None:
    catalog = pd.DataFrame(
        {
            "theta_E": [1.0, 1.0],
            "source_x": [3.0, 0.0],
            "source_y": [4.0, 0.0],
            "source_e1": [0.0, 1 / 3],
            "source_e2": [1 / 3, 0.0],
            "vortex_angle": [np.pi - 0.25, np.pi + 0.25],
            "subhalo_theta_E": [[0.1, 0.2], []],
            "subhalo_x": [[9.0, 0.6], []],
            "subhalo_y": [[9.0, 0.8], []],
        }
    )

    found = true_parameters(catalog)

    assert found["source_offset"].tolist() == [5.0, 0.0]
    assert found["source_q"].tolist() == pytest.approx([0.5, 0.5])
    assert found["vortex_angle_to_x"].tolist() == pytest.approx([0.25, 0.25])
    assert found["heaviest_theta_E"].tolist()[0] == 0.2
    assert found["heaviest_to_ring"].tolist()[0] == pytest.approx(0.0)
    assert np.isnan(found["heaviest_theta_E"].tolist()[1])


def test_the_table_says_where_nothing_was_found() -> None:
    assert "too few to compare" in render_breakdown(CLASSES, [])
