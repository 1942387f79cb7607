"""The published DeepLense archives: three classes, mass fractions, and Models I to III."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensing_models.data.archive import Member, iterate_members
from lensing_models.data.candidate import (
    BadFileError,
    Candidate,
    Collection,
    Example,
    Kind,
    as_image,
    check_target,
    find_class,
)
from lensing_models.data.npy import read_npy
from lensing_models.data.partition import Shares
from lensing_models.specs import TaskSpec

CLASSES = ("no", "sphere", "vort")
PARTS = ("train", "val")
#: How the file names of Models I to III begin, and the class that this project calls it.
MODEL_PREFIXES = {"no_sub_sim": "no", "cdm_sim": "sphere", "axion_sim": "vort"}


def _open_classes(path: Path, task: TaskSpec, labels: Path | None) -> Collection:
    """Return the classification archive; the name of an image is its last three path parts."""
    for class_name in CLASSES:
        find_class(task, class_name)

    def read(member: Member) -> Example:
        class_name = PurePosixPath(member.name).parts[-2]
        image = as_image(read_npy(member.read(), member.label), member.label, task)
        return Example(pixels=image, label=find_class(task, class_name), class_name=class_name)

    def candidates() -> Iterator[Candidate]:
        for member in _npy_members(path):
            place = PurePosixPath(member.name).parts[-3:]
            if len(place) == 3 and place[0] in PARTS and place[1] in CLASSES:
                yield Candidate(name="/".join(place), read=partial(read, member), pool=place[0])
            else:
                yield _misplaced(member, "in {train,val}/{no,sphere,vort}/")

    return Collection(candidates=candidates)


def _open_mass(path: Path, task: TaskSpec, labels: Path | None) -> Collection:
    """Return the mass archive; the name of an image is that of its file."""
    if not task.targets:
        raise ValueError(f"task {task.name} wants classes, this archive holds mass fractions; see --task")

    def read(member: Member) -> Example:
        image, value = _read_pair(member, "mass fraction")
        mass_fraction = check_target(task, value, member.label)
        facts = {task.targets[0].name: mass_fraction}
        return Example(
            pixels=as_image(image, member.label, task), label=mass_fraction, class_name="sphere", facts=facts
        )

    def candidates() -> Iterator[Candidate]:
        for member in _npy_members(path):
            yield Candidate(name=PurePosixPath(member.name).name, read=partial(read, member))

    return Collection(candidates=candidates)


def _open_models(path: Path, task: TaskSpec, labels: Path | None) -> Collection:
    """Return one of Models I to III; the name of an image is that of its file."""
    for class_name in CLASSES:
        find_class(task, class_name)

    def read(member: Member, class_name: str) -> Example:
        facts = {"axion_mass_eV": float("nan")}
        if class_name == "vort":
            array, facts["axion_mass_eV"] = _read_pair(member, "axion mass")
        else:
            array = read_npy(member.read(), member.label)
        image = as_image(array, member.label, task)
        return Example(pixels=image, label=find_class(task, class_name), class_name=class_name, facts=facts)

    def candidates() -> Iterator[Candidate]:
        for member in _npy_members(path):
            name = PurePosixPath(member.name).name
            found = [class_name for prefix, class_name in MODEL_PREFIXES.items() if name.startswith(prefix)]
            if found:
                yield Candidate(name=name, read=partial(read, member, found[0]))
            else:
                yield _misplaced(member, f"named {'*, '.join(MODEL_PREFIXES)}*")

    return Collection(candidates=candidates)


def _npy_members(path: Path) -> Iterator[Member]:
    return (member for member in iterate_members(path) if member.name.endswith(".npy"))


def _misplaced(member: Member, expected: str) -> Candidate:
    """Return a candidate that cannot be read: a file without a label must not vanish silently."""

    def read() -> Example:
        raise BadFileError(f"{member.label} has no label: it is not {expected}")

    return Candidate(name=member.name, read=read)


def _read_pair(member: Member, quantity: str) -> tuple[NDArray[Any], float]:  # Any: counts or floats
    """Return image and value from an array of two objects; BadFileError if it holds anything else."""
    pair = read_npy(member.read(), member.label)
    if pair.dtype != object or pair.shape != (2,):
        raise BadFileError(f"{member.label} holds {pair.dtype} {pair.shape}, not [image, {quantity}]")
    image, value = pair
    plain = isinstance(value, int | float | np.generic | np.ndarray)
    number = np.asarray(value if plain else None)
    if not isinstance(image, np.ndarray) or number.size != 1 or number.dtype.kind not in "iuf":
        raise BadFileError(f"{member.label} does not hold [image, {quantity}]")
    if not np.isfinite(number).all():
        raise BadFileError(f"{member.label}: its {quantity} is not finite")
    return image, float(number.reshape(()))


def _kind(
    name: str,
    task: str,
    opener: Callable[[Path, TaskSpec, Path | None], Collection],
    shares: Shares,
    *,
    layout: str,
    rule: str,
    about: str,
) -> Kind:
    source = "The lenses are simulations by the DeepLense group, not observations; their parameters beyond the label"
    about = f"{about} {source} are not published with them."
    return Kind(name=name, task=task, layout=layout, rule=rule, about=about, shares=shares, open=opener)


KINDS = (
    _kind(
        "deeplense_classes",
        "substructure",
        _open_classes,
        Shares(
            weights={"train": 27000, "validation": 3000, "test": 3000},
            capped=True,
            pools={"train": "train", "validation": "train", "test": "val"},
        ),
        layout="dataset/{train,val}/{no,sphere,vort}/*.npy",
        rule="class = folder; train and validation from train/, test from val/",
        about=(
            "DeepLense classification archive ('Common Test I'): images min-max scaled to [0, 1] by its authors, so "
            "that counts are lost. The published test folder holds 7,500 images; the published test size of 3,000 is "
            "drawn from it."
        ),
    ),
    _kind(
        "deeplense_mass",
        "halo_mass",
        _open_mass,
        Shares(weights={"train": 16200, "validation": 1800, "test": 2000}, capped=True),
        layout="lens_data/*.npy, each a pickled pair [image, mass fraction]",
        rule="label = second of the pair",
        about=(
            "DeepLense mass archive ('Specific Test III'): counts, labelled by the fraction of the halo's mass in "
            "substructure (published labels: 0.00285 to 0.1075). The published split into 81 : 9 : 10 is not listed, "
            "so this one differs from it image by image."
        ),
    ),
    _kind(
        "deeplense_models",
        "substructure",
        _open_models,
        Shares(weights={"train": 27000, "validation": 3000, "test": 3000}, capped=True),
        layout="no_sub_sim_*.npy, cdm_sim_*.npy (images) and axion_sim_*.npy (pickled pairs [image, axion mass])",
        rule="class = prefix of the file name: " + ", ".join(f"{a} -> {b}" for a, b in MODEL_PREFIXES.items()),
        about=(
            "DeepLenseSim, one of Models I to III. 'sphere' are its cold-dark-matter subhalos, 'vort' its axion "
            "vortices, with the axion's mass [eV] in the catalogue."
        ),
    ),
)
