"""Small archives in the published formats, packed as a folder, a zip or a tar."""

from __future__ import annotations

import dataclasses
import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from lensing_models.registry import find_task

PACKINGS = ("folder", "zip", "tgz", "tar")
SIDE = 6
CLASSES = dataclasses.replace(find_task("substructure"), image_shape=(1, SIDE, SIDE))
MASS = dataclasses.replace(find_task("halo_mass"), image_shape=(1, SIDE, SIDE))
GALAXIES = find_task("galaxy_morphology")


class Hostile:
    """Runs a command when a trusting reader unpickles it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def npy(array: np.ndarray) -> bytes:
    """Return the bytes of a ``.npy`` file; objects are pickled, as in the published archives."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def pair(image: np.ndarray, value: object) -> bytes:
    """Return the bytes of a pickled [image, value]."""
    array = np.empty(2, object)
    array[0], array[1] = image, value
    return npy(array)


def counts(seed: int, side: int = SIDE) -> np.ndarray:
    """Return an image (side, side) int64 that no other seed gives."""
    return np.random.default_rng(seed).poisson(200, (side, side)).astype(np.int64)


def scaled(seed: int, side: int = SIDE) -> np.ndarray:
    """Return an image (1, side, side) float64 scaled to [0, 1]."""
    image = np.random.default_rng(seed).random((1, side, side))
    return np.asarray((image - image.min()) / (image.max() - image.min()))


def class_files(train: int = 10, val: int = 4, side: int = SIDE) -> dict[str, bytes]:
    """Return the files of a classification archive, *train* and *val* images a class."""
    places = [
        f"{part}/{name}/{index}.npy"
        for part, number in (("train", train), ("val", val))
        for name in ("no", "sphere", "vort")
        for index in range(number)
    ]
    return {f"dataset/{place}": npy(scaled(seed, side)) for seed, place in enumerate(places)}


def mass_files(number: int = 20, side: int = SIDE) -> dict[str, bytes]:
    """Return the files of a mass archive; image i has the mass fraction 0.01 + i / 1000."""
    return {
        f"lens_data/lens_{index:02}.npy": pair(counts(index, side), np.float64(0.01 + index / 1000))
        for index in range(number)
    }


def pack(where: Path, files: Mapping[str, bytes], packing: str = "folder") -> Path:
    """Return the path of *files*, packed."""
    if packing == "folder":
        for name, content in files.items():
            (where / "files" / name).parent.mkdir(parents=True, exist_ok=True)
            (where / "files" / name).write_bytes(content)
        return where / "files"
    path = where / f"files.{packing}"
    if packing == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with ExitStack() as stack:
        stream = stack.enter_context(
            gzip.GzipFile(path, "wb", compresslevel=1) if packing == "tgz" else path.open("wb")
        )
        tar = stack.enter_context(tarfile.open(fileobj=stream, mode="w"))
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
