"""How much mass is in subhalos, in units of a halo of fixed mass (1e12 Msun in our skies)?"""

from __future__ import annotations

from lensing_models.specs import Target, TaskSpec

TASK = TaskSpec(
    name="halo_mass",
    kind="regression",
    targets=(Target(name="mass_fraction", unit="", symbol="f_sub", valid=(1e-6, 1.0)),),
    image_shape=(1, 150, 150),
    pixel_scale_arcsec=0.05,
    lens_classes=("sphere",),
    primary_metric="mse",
    metrics=("mse", "mse_log10", "r2", "bias", "scatter"),
    source="DeepLense mass archive ('Specific Test III'): realised mass fraction in subhalos",
)
