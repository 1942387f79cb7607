"""The networks, one row each. Published values: DeepLense (classification and mass tests), Galaxy Zoo."""

from __future__ import annotations

from lensing_models.specs import ArchitectureSpec, Schedule

ARCHITECTURES: tuple[ArchitectureSpec, ...] = (
    ArchitectureSpec(
        name="mobilenetv3_small",
        timm_name="mobilenetv3_small_100",
        input_size=150,
        published={"substructure": {"auc": 0.9741, "accuracy": 0.8867}, "halo_mass": {"mse": 6.1e-5}},
        quick=Schedule(batch_size=16, learning_rate=3e-3, most_steps=120),
    ),
    ArchitectureSpec(
        name="resnet18",
        timm_name="resnet18",
        input_size=150,
        published={"substructure": {"auc": 0.9871, "accuracy": 0.9363}, "halo_mass": {"mse": 6.8e-5}},
        quick=Schedule(batch_size=32, learning_rate=1e-3, most_steps=32),
    ),
    ArchitectureSpec(
        name="resnet34",
        timm_name="resnet34",
        input_size=150,
        published={"galaxy_morphology": {"accuracy": 0.7832}},
        quick=Schedule(batch_size=32, learning_rate=1e-3, most_steps=20),
    ),
    ArchitectureSpec(
        name="efficientnet_b5",
        timm_name="efficientnet_b5",
        input_size=224,
        published={"substructure": {"auc": 0.9931, "accuracy": 0.9588}, "halo_mass": {"mse": 4.8e-5}},
        quick=Schedule(batch_size=8, learning_rate=3e-4, most_steps=6),
    ),
    ArchitectureSpec(
        name="efficientnet_b5",
        variant="px150",
        timm_name="efficientnet_b5",
        input_size=150,
        quick=Schedule(batch_size=8, learning_rate=3e-4, most_steps=12),
    ),
)
