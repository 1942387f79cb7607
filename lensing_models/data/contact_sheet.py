"""A picture of a data set: some images of each class with what is true of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lensing_models.data.manifest import SplitName
from lensing_models.data.preprocess import scale_to_unit
from lensing_models.data.store import Store

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

COLUMNS = 6
#: Columns of the catalogue that a title shows, where there are any, and how they are written.
SHOWN: Mapping[str, str] = {
    "theta_E": r"$\theta_E$ {:.2f}$''$",
    "n_subhalos": "{:.0f} subhalos",
    "mass_fraction": r"$f_\mathrm{{sub}}$ {:.3f}",
    "vortex_length": "rod {:.2f}$''$",
}
#: Softening of the stretch: 0.05 of an image's range is where it turns from linear to logarithmic.
STRETCH = 0.05


def save_contact_sheet(store: Store, path: Path, *, columns: int = COLUMNS) -> None:
    """Write a PNG with one row a class, brightness stretched by asinh, axes in arcsec; in px for galaxies.

    Args:
        store: Whose first images of each class are shown, from the split that has any: test first.
        path: Where to.
        columns: Images in a row.
    """
    from matplotlib.figure import Figure

    names: tuple[SplitName, ...] = ("test", "validation", "train")
    split = next(name for name in names if len(store.indices(name)))
    rows = store.catalog.iloc[store.indices(split)]
    order = rows.groupby("class")["label"].min().sort_values().index
    by_class = {str(name): rows[rows["class"] == name].head(columns) for name in order}
    recipe = store.manifest.recipe
    figure = Figure(figsize=(2.2 * columns, 2.3 * len(by_class) + 0.4), layout="constrained")
    axes = figure.subplots(len(by_class), columns, squeeze=False)
    for line, (name, group) in zip(axes, by_class.items(), strict=True):
        for place, axis in enumerate(line):
            if place >= len(group):
                axis.set_axis_off()
                continue
            draw_image(axis, store, int(group.index[place]))
            axis.set_title(_title_of(group.iloc[place]), fontsize=7)
        line[0].set_ylabel(f"{name}\n[{'px' if recipe.image_shape[0] == 3 else 'arcsec'}]", fontsize=9)
    figure.suptitle(f"{recipe.task}, sky {recipe.sky}: {split} images, asinh stretch", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def draw_image(axis: Axes, store: Store, row: int) -> None:
    """Draw one image on *axis*: one band in false colour, three as red, green and blue over a dark sky."""
    recipe = store.manifest.recipe
    image = scale_to_unit(store.counts(np.array([row])))[0].numpy()
    if len(image) == 3:  # the sky differs between the bands, and would tint the whole image
        image = np.maximum(image - np.median(image, axis=(1, 2), keepdims=True), 0)
    image = np.minimum(np.arcsinh(image / STRETCH) / np.arcsinh(1 / STRETCH), 1)
    shown = image.transpose(1, 2, 0) if len(image) == 3 else image[0]
    if len(image) == 3:  # frames scaled to their galaxies, top row first as in a photograph
        axis.imshow(shown)
    else:
        half_y, half_x = (size * recipe.pixel_scale_arcsec / 2 for size in recipe.image_shape[1:])
        axis.imshow(shown, cmap="inferno", origin="lower", extent=(-half_x, half_x, -half_y, half_y), vmin=0, vmax=1)
    axis.tick_params(labelsize=6)


def _title_of(truth: pd.Series[float]) -> str:
    """Return what is true of an image; what is zero or not there is left out."""
    parts = [text.format(truth[name]) for name, text in SHOWN.items() if name in truth.index and truth[name] > 0]
    return ", ".join(parts[:2]) + ("\n" + ", ".join(parts[2:]) if parts[2:] else "")
