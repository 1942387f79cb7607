"""What a fit minimises."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from lensing_models.network import LensNetwork
from lensing_models.specs import TaskSpec

TEMPERATURE = 2.0  # of a teacher's class probabilities
TEACHER_SHARE = 0.9  # of the loss
CERTAIN = 1e-12  # a doubt, 1 - p, below which it counts as this


def task_loss(
    task: TaskSpec,
    network: LensNetwork,
    outputs: torch.Tensor,
    labels: torch.Tensor,
    alpha: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the loss of a batch: focal loss or cross entropy, or the squared error in standard deviations.

    Args:
        task: Its kind chooses the loss, its `focal_gamma` the focus.
        network: Its `output_scale` is the spread of a regression's labels.
        outputs: (B, K) float32 from *network*.
        labels: (B,) int64 class indices, or float32 log10 of the target.
        alpha: (K,) float32 weight of each class, as `class_weights` gives it; all 1 if None.

    Returns:
        Scalar, the mean over the batch.
    """
    if task.kind == "regression":
        return standardised_mse(outputs[:, 0], labels, network.output_scale)
    if task.focal_gamma == 0 and alpha is None:
        return functional.cross_entropy(outputs, labels)
    return focal_loss(outputs, labels, gamma=task.focal_gamma, alpha=alpha)


def distillation_loss(
    task: TaskSpec,
    network: LensNetwork,
    outputs: torch.Tensor,
    labels: torch.Tensor,
    taught: torch.Tensor,
    alpha: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the loss of a batch that has labels and a teacher's answers.

    Hinton et al. 2015, arXiv:1503.02531, section 2: a share of `TEACHER_SHARE` is the divergence
    KL(teacher || network) of the class probabilities at `TEMPERATURE` T, times T^2 so that its
    gradient does not fade with T; the rest is `task_loss`. For a regression the share is the
    squared difference of the two answers, in standard deviations of the labels.

    Args:
        task: Its kind chooses the loss.
        network: As for `task_loss`.
        outputs: (B, K) float32 from *network*.
        labels: (B,) as for `task_loss`.
        taught: (B, K) float32 outputs of the teacher for the same images.
        alpha: As for `task_loss`.

    Returns:
        Scalar, the mean over the batch.
    """
    own = task_loss(task, network, outputs, labels, alpha)
    if task.kind == "regression":
        imitation = standardised_mse(outputs, taught, network.output_scale)
    else:
        softened = functional.log_softmax(outputs / TEMPERATURE, dim=1)
        wanted = functional.log_softmax(taught / TEMPERATURE, dim=1)
        imitation = TEMPERATURE**2 * functional.kl_div(softened, wanted, reduction="batchmean", log_target=True)
    return torch.lerp(own, imitation, TEACHER_SHARE)


def class_weights(task: TaskSpec, labels: torch.Tensor) -> torch.Tensor | None:
    """Return the weight (K,) float32 of each class of *task*, 1 on average over *labels*.

    A class weighs as the inverse of its share to the power `TaskSpec.balance`.

    Args:
        task: Its classes and its balance.
        labels: (N,) int64 class indices of the training images.

    Returns:
        None where all classes weigh alike; a class without images weighs as one with a single image.
    """
    if task.balance == 0:
        return None
    counts = torch.bincount(labels, minlength=len(task.classes)).double()
    weights = counts.clamp_min(1) ** -task.balance
    return (weights * (counts.sum() / (weights * counts).sum())).float()


def standardised_mse(predicted: torch.Tensor, true: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error in units of *scale*; 1 is what predicting the mean scores."""
    return ((predicted - true) / scale).square().mean()


def focal_loss(
    logits: torch.Tensor, labels: torch.Tensor, *, gamma: float = 2.0, alpha: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the focal loss, -alpha_y (1 - p_y)^gamma log p_y, averaged over the batch.

    Lin et al. 2017, arXiv:1708.02002, equation 5, with a softmax for p. It turns the fit's
    attention to the images that are still wrong; gamma 0 is cross entropy.

    Args:
        logits: (B, K) float32.
        labels: (B,) int64 class indices.
        gamma: Focus, 0 or more.
        alpha: (K,) float32 weight of each class; all 1 if None.

    Raises:
        ValueError: If gamma is negative or alpha does not give one weight for each class.
    """
    if not 0 <= gamma < math.inf:
        raise ValueError(f"focal loss: gamma is {gamma}; it must be 0 or more")
    if alpha is not None and alpha.shape != logits.shape[1:]:
        raise ValueError(f"focal loss: alpha has shape {tuple(alpha.shape)}; give one weight for each class")
    log_p = functional.log_softmax(logits, dim=1).gather(1, labels[:, None])[:, 0]
    # -expm1(log p) is 1 - p without the cancellation near p = 1. At 0 the slope of a root is infinite.
    loss = -((-torch.expm1(log_p)).clamp_min(CERTAIN) ** gamma) * log_p
    return (loss if alpha is None else alpha[labels] * loss).mean()
