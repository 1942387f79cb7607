"""Which substructure does the lens hold: none, subhalos, or a vortex?"""

from __future__ import annotations

from lensing_models.specs import TaskSpec

TASK = TaskSpec(
    name="substructure",
    kind="classification",
    classes=("no", "sphere", "vort"),
    image_shape=(1, 150, 150),
    pixel_scale_arcsec=0.05,
    lens_classes=("no", "sphere", "vort"),
    primary_metric="auc",
    metrics=("auc", "accuracy", "log_loss"),
    source="DeepLense classification archive ('Common Test I'): no / sphere / vort",
)
