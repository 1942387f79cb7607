"""What a data set is made from and what came out: its identity, its digests, its card."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

SCHEMA = 1
SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides the data.

    Attributes:
        task: Name of the task.
        sky: Name of the sky; `sky_digest` is that of its assumptions.
        seed: Seed of the data set.
        sizes: Number of images by split.
        simulator: Version of the simulator's formulas.
        image_shape: Channels, height and width [px].
        pixel_scale_arcsec: Side of a pixel [arcsec].
    """

    task: str
    sky: str
    sky_digest: str
    seed: int
    sizes: Mapping[str, int]
    simulator: int
    image_shape: tuple[int, ...]
    pixel_scale_arcsec: float

    def __post_init__(self) -> None:
        if min(self.sizes.values()) < 0 or sum(self.sizes.values()) == 0:
            raise ValueError(f"sizes must not be negative, nor all zero: {dict(self.sizes)}")

    @property
    def digest(self) -> str:
        """Return the SHA-256 of all of it."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a store says of itself.

    Attributes:
        schema: Version of the folder's layout.
        recipe: What was asked for.
        recipe_digest: Its digest: the identity of the data, equal on every machine.
        dtype: Type of the stored values.
        scale: Counts are ``stored * scale + offset``.
        archive: Of an import, the digest of all usable images of the archive, however they are split.
        content_sha256: Digest of these very bytes of images and catalogue; another processor or
            torch version may differ from it in a last count.
    """

    schema: int = SCHEMA
    recipe: Recipe
    recipe_digest: str
    dtype: str
    scale: float = 1.0
    offset: float = 0.0
    archive: str = ""
    content_sha256: str


def read_manifest(path: Path) -> Manifest:
    """Return the manifest at *path*; ValueError, naming it, if it is not one that we can read."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; not a data set, or an unfinished one")
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))  # Any: parsed JSON
        schema = facts["schema"]
        if schema != SCHEMA:
            raise ValueError(f"unknown schema {schema!r}; known: {SCHEMA}")
        recipe = Recipe(**facts.pop("recipe"))
        manifest = Manifest(recipe=recipe, **facts)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a manifest: {error}") from error
    if manifest.recipe_digest != recipe.digest:
        raise ValueError(f"{path}: recipe and recipe_digest do not belong together; it was edited")
    return manifest


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write *manifest* as `read_manifest` reads it."""
    path.write_text(json.dumps(dataclasses.asdict(manifest), indent=2) + "\n", encoding="utf-8")


def render_card(manifest: Manifest, about: str) -> str:
    """Return the page for people."""
    recipe = manifest.recipe
    facts: Mapping[str, object] = {
        "task": recipe.task,
        "sky": recipe.sky,
        "seed": recipe.seed,
        "images": ", ".join(f"{size} {split}" for split, size in recipe.sizes.items()),
        "shape": f"{' x '.join(map(str, recipe.image_shape))}, {recipe.pixel_scale_arcsec} arcsec a pixel",
        "values": f"{manifest.dtype} counts",
        "recipe digest": manifest.recipe_digest,
        "content SHA-256": manifest.content_sha256,
    }
    rows = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    return f"# {recipe.task} under sky {recipe.sky}\n\n{about}\n\n{rows}\n"
