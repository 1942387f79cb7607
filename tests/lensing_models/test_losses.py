import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import special
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from lensing_models.losses import (
    TEACHER_SHARE,
    TEMPERATURE,
    class_weights,
    distillation_loss,
    focal_loss,
    standardised_mse,
    task_loss,
)
from lensing_models.network import LensNetwork
from lensing_models.registry import find_task


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(16, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.arange(16) % 3


def network_with_scale(scale: float) -> LensNetwork:
    network = LensNetwork(torch.nn.Identity(), image_size=4, input_size=4, output_count=1)
    network.output_scale.fill_(scale)
    return network


def test_classification_loss_is_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> None:
    loss = task_loss(find_task("substructure"), network_with_scale(1.0), logits, labels)

    expected = -torch.log(torch.softmax(logits, dim=1)[torch.arange(16), labels]).mean()
    assert loss.item() == pytest.approx(expected.item())


def test_a_task_with_a_focus_is_fitted_by_focal_loss(labels: torch.Tensor) -> None:
    task = find_task("galaxy_morphology")
    logits = torch.randn(16, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = torch.softmax(logits, dim=1)[torch.arange(16), labels]

    loss = task_loss(task, network_with_scale(1.0), logits, labels)

    assert loss.item() == pytest.approx((-((1 - p) ** task.focal_gamma) * p.log()).mean().item())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_an_image_that_is_certain_has_a_gradient(gamma: float) -> None:
    # The probability of the first is 1 in float32.
    logits = torch.tensor([[200.0, 0.0, 0.0], [1.0, 0.0, 0.0]], requires_grad=True)

    focal_loss(logits, torch.tensor([0, 0]), gamma=gamma).backward()

    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0].abs().max() < 1e-6 < logits.grad[1].abs().max()


def test_rare_classes_weigh_more_and_an_image_one_on_average() -> None:
    task = dataclasses.replace(find_task("galaxy_morphology"), balance=1.0)
    labels = torch.tensor([0] * 60 + [1] * 20 + [2] * 10 + [3] * 5 + [4] * 5)

    weights = class_weights(task, labels)

    assert weights is not None
    # Balanced in full, each of K classes has the weight N / (K n_c), as scikit-learn's "balanced".
    expected = compute_class_weight("balanced", classes=np.arange(5), y=labels.numpy())
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)


def test_without_balance_no_class_weighs_more() -> None:
    assert class_weights(find_task("substructure"), torch.tensor([0, 0, 1, 2])) is None


def test_a_class_without_images_has_a_finite_weight() -> None:
    weights = class_weights(find_task("galaxy_morphology"), torch.tensor([0, 1, 3, 4]))

    assert weights is not None
    assert weights.isfinite().all()


def test_regression_loss_counts_in_standard_deviations_of_the_labels() -> None:
    predicted, true = torch.tensor([[-1.0], [-1.4]]), torch.tensor([-1.2, -1.2])

    loss = task_loss(find_task("halo_mass"), network_with_scale(0.1), predicted, true)

    assert loss.item() == pytest.approx((2**2 + 2**2) / 2, rel=1e-5)


def test_predicting_the_mean_costs_one() -> None:
    true = torch.tensor([-1.0, -1.2, -1.7, -1.1])

    loss = standardised_mse(true.mean().expand(4), true, true.std(correction=0))

    assert loss.item() == pytest.approx(1.0, rel=1e-5)


def test_focal_loss_with_gamma_zero_is_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> None:
    expected = functional.cross_entropy(logits, labels)

    assert focal_loss(logits, labels, gamma=0.0).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_loss_of_equal_logits_has_a_closed_form(gamma: float) -> None:
    loss = focal_loss(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]), gamma=gamma)

    assert loss.item() == pytest.approx((2 / 3) ** gamma * math.log(3), rel=1e-5)


def test_focal_loss_weighs_each_image_by_the_alpha_of_its_class() -> None:
    alpha = torch.tensor([1.0, 10.0, 100.0])

    loss = focal_loss(torch.zeros(3, 3), torch.tensor([0, 1, 1]), gamma=1.0, alpha=alpha)

    assert loss.item() == pytest.approx((1 + 10 + 10) / 3 * (2 / 3) * math.log(3), rel=1e-5)


def test_focal_loss_hardly_counts_an_image_that_is_right() -> None:
    sure = torch.tensor([[6.0, 0.0, 0.0]])

    ratio = focal_loss(sure, torch.tensor([0])) / functional.cross_entropy(sure, torch.tensor([0]))

    assert ratio.item() == pytest.approx((2 / (math.exp(6) + 2)) ** 2, rel=1e-3)


def test_focal_loss_has_a_finite_gradient_where_an_image_is_certain() -> None:
    certain = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)

    focal_loss(certain, torch.tensor([0])).backward()

    assert certain.grad is not None
    assert torch.isfinite(certain.grad).all()


def test_focal_loss_refuses_a_negative_gamma(logits: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="gamma is -1"):
        focal_loss(logits, labels, gamma=-1)


def test_focal_loss_refuses_an_alpha_for_other_classes(logits: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"alpha has shape \(2,\)"):
        focal_loss(logits, labels, alpha=torch.ones(2))


def test_distillation_is_cross_entropy_and_the_divergence_from_the_softened_teacher(
    logits: torch.Tensor, labels: torch.Tensor
) -> None:
    taught = torch.randn(16, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3

    loss = distillation_loss(find_task("substructure"), network_with_scale(1.0), logits, labels, taught)

    wanted, given = (special.softmax(part.numpy() / TEMPERATURE, axis=1) for part in (taught, logits))
    divergence = special.rel_entr(wanted, given).sum(axis=1).mean() * TEMPERATURE**2
    own = functional.cross_entropy(logits, labels).item()
    assert loss.item() == pytest.approx((1 - TEACHER_SHARE) * own + TEACHER_SHARE * divergence, rel=1e-6)


def test_distillation_of_a_regression_weighs_two_squared_errors_in_standard_deviations() -> None:
    outputs, labels, taught = torch.tensor([[1.0], [2.0]]), torch.tensor([1.5, 2.0]), torch.tensor([[1.0], [3.0]])

    loss = distillation_loss(find_task("halo_mass"), network_with_scale(0.5), outputs, labels, taught)

    assert loss.item() == pytest.approx((1 - TEACHER_SHARE) * 0.5 + TEACHER_SHARE * 2.0)


def test_a_network_that_answers_as_its_teacher_has_nothing_to_imitate(
    logits: torch.Tensor, labels: torch.Tensor
) -> None:
    logits.requires_grad_()

    distillation_loss(find_task("substructure"), network_with_scale(1.0), logits, labels, logits.detach()).backward()

    assert logits.grad is not None
    pulled = logits.grad.clone()
    logits.grad = None
    functional.cross_entropy(logits, labels).backward()
    torch.testing.assert_close(pulled, (1 - TEACHER_SHARE) * logits.grad, rtol=1e-5, atol=1e-7)
