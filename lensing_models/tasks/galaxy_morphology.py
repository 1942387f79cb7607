"""What does the galaxy look like: round, in between, like a cigar, a disc on edge, a spiral?

The bands are i, r, g: red, green, blue. A frame is scaled to its galaxy, as in Galaxy Zoo: its 424 px of 0.02
Petrosian R90 in r, cut to the middle 208 and averaged 2 x 2, so that a pixel is 0.04 R90 and a
frame 4.16 R90, whatever the angle. `pixel_scale_arcsec` is nominal, that of R90 = 10 arcsec; the
true one of each simulated image stands in the catalogue.
"""

from __future__ import annotations

from lensing_models.specs import TaskSpec

TASK = TaskSpec(
    name="galaxy_morphology",
    kind="classification",
    classes=("round", "in_between", "cigar", "edge_on", "spiral"),
    image_shape=(3, 104, 104),
    pixel_scale_arcsec=0.4,
    lens_classes=(),
    focal_gamma=2.0,  # that of the paper of the loss, Lin et al. 2017, section 5.1
    balance=0.5,  # between shares as they are, of which cigars are 2 %, and equal ones
    primary_metric="accuracy",
    metrics=("accuracy", "auc", "macro_recall", "log_loss"),
    source="Galaxy Zoo (Kaggle), the five clean classes; published: ResNet34 from scratch with focal loss, "
    "test accuracy 78.32 %, which simulated galaxies do not compare with",
)
