"""Trained weights on disk: a safetensors file, and a card that says where they came from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import lensing_models
from lensing_models.checkpoint_index import fetch_weights
from lensing_models.preset import PRESETS
from lensing_models.registry import find_architecture, find_task

if TYPE_CHECKING:
    import torch

    from lensing_models.network import LensNetwork


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """Where a checkpoint came from and what it is worth.

    Attributes:
        architecture: Label of the network: see `ArchitectureSpec.label`.
        sha256: Digest of the safetensors file; empty until `write_checkpoint` has written it.
        recipe_digest: Identity of the data set it was fitted on.
        sky: Physical parameters of that data set, or the kind of archive that it is of.
        archive: Digest of that archive's images, however they were split; empty for simulated ones and in older cards.
        preset: Size of work of the fit.
        steps: Optimiser steps taken.
        epochs: How often each training image had been seen when the network had these weights, on average.
        schedule_epochs: To which the schedule was laid out; 0 where the card is older than this field.
        converged: Whether the schedule ran to its end; False where a step cap ended it or a time
            budget shortened it: see `cut_to`.
        pretrained: Whether the fit started from timm's weights instead of random ones.
        pretrained_file: Digest of the file that had these; empty where they came from timm's hub.
        start: Digest of the checkpoint that the fit started from; empty without one.
        stream: Whether each epoch after the first showed new images; `recipe_digest` is of the stored ones.
        teacher: Digest of the checkpoint whose answers were imitated; empty without one.
        focal_gamma: Focus of the loss: see `TaskSpec`.
        balance: Weight of rare classes in the loss: see `TaskSpec`.
        input_size: Side to which the network resized its input [px]; 0 where the card is older than this field.
        processes: Processes that fitted it together.
        test_uses: How often networks of this pair, kept or replaced at this path, were scored on
            the test split of these data: 1 says that nothing was chosen by it.
        scored_images: Images behind `validation` and `test`, by split.
        validation: Metrics of the rounded weights, eager fp32, on the validation split.
        test: The same on the test split.
        intervals: 95 % interval of each of these, by a bootstrap over the images.
        fitted_with: What else the fit was made with: batch size, learning rate and weight decay, device, precision and
            threads, and the wall time of its last attempt [s]; empty where the card is older than this field.
        revision: Git revision of the suite, ``-dirty`` behind it if the tree was changed; its
            version where there is no checkout.
        versions: Versions of the packages that fitted it.
        recorded_at: ISO 8601 time, UTC.
    """

    task: str
    architecture: str
    sha256: str = ""
    recipe_digest: str
    sky: str
    archive: str = ""
    preset: str
    seed: int
    steps: int
    epochs: float
    schedule_epochs: float = 0.0
    converged: bool
    pretrained: bool = False
    pretrained_file: str = ""
    start: str = ""
    stream: bool = False
    teacher: str = ""
    focal_gamma: float = 0.0
    balance: float = 0.0
    input_size: int = 0
    processes: int = 1
    test_uses: int = 1
    scored_images: Mapping[str, int] = field(default_factory=dict)
    validation: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    fitted_with: Mapping[str, str | float] = field(default_factory=dict)
    revision: str
    versions: Mapping[str, str]
    recorded_at: str

    @property
    def cut_to(self) -> str:
        """Return how far a fit went whose schedule a time budget shortened, e.g. ``5 of 12 epochs``; else empty."""
        preset = PRESETS.get(self.preset)
        if self.converged or preset is None or preset.step_capped:
            return ""
        return f"{self.schedule_epochs or self.epochs:.3g} of {preset.epochs_for(self.task)} epochs"

    @property
    def state(self) -> str:
        """Return ``converged``, `cut_to`, or ``unconverged``."""
        return "converged" if self.converged else self.cut_to or "unconverged"

    def to_json(self) -> str:
        """Return the card as indented JSON; a metric that is not defined (NaN) becomes null."""
        facts = dataclasses.asdict(self)
        for split in ("validation", "test"):
            facts[split] = {name: None if math.isnan(value) else value for name, value in facts[split].items()}
        facts["intervals"] = {
            name: [None if math.isnan(bound) else bound for bound in bounds] for name, bounds in self.intervals.items()
        }
        return json.dumps(facts, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Card:
        """Return the card that `to_json` wrote; raise ValueError if *text* is not one."""
        try:
            facts = json.loads(text)
            for split in ("validation", "test"):
                facts[split] = {name: math.nan if value is None else value for name, value in facts[split].items()}
            facts["intervals"] = {
                name: tuple(math.nan if bound is None else bound for bound in bounds)
                for name, bounds in facts.get("intervals", {}).items()
            }
            return cls(**facts)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a checkpoint card: {error}") from error


def checkpoint_path(folder: Path, task_name: str, architecture_name: str) -> Path:
    """Return where the weights of a model lie in *folder*; the card lies beside them as ``.json``."""
    return folder / f"{task_name}-{architecture_name}.safetensors"


def read_card(path: Path) -> Card:
    """Return the card of the checkpoint *path*; the weights are not looked at.

    Raises:
        ValueError: If there is no readable card.
    """
    card_path = path.with_suffix(".json")
    try:
        return Card.from_json(card_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        remedy = "copy the two files together, or fit it again: python -m lensing_models.train --refit"
        raise ValueError(f"{path}: its card {card_path.name} is missing; {remedy}") from None
    except ValueError as error:
        raise ValueError(f"{card_path}: {error}; fit it again: python -m lensing_models.train --refit") from error


def verify_checkpoint(path: Path) -> Card:
    """Return the card of *path* after checking that the weights are the ones it describes.

    Weights that are missing are fetched where an index beside or above them says where from.

    Raises:
        ValueError: If a file is missing or damaged, or for a task, an architecture or an input size that is unknown.
        OSError: If weights could not be fetched.
    """
    return _read(path)[0]


def load_checkpoint(path: Path) -> tuple[LensNetwork, Card]:
    """Return the network of *path*, fp32 on the CPU in evaluation mode, and its card.

    Raises:
        ValueError: As `verify_checkpoint`, or if the tensors do not fit the architecture.
    """
    import safetensors
    import safetensors.torch

    card, content = _read(path)
    network = find_architecture(card.architecture).build(find_task(card.task))
    try:
        tensors = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error}); {_refit(card)}") from error
    if misfit := _misfit(tensors, network.state_dict()):
        raise ValueError(f"{path}: does not fit {card.architecture} on {card.task}: {misfit}; {_refit(card)}")
    network.load_state_dict(tensors)
    return network, card


def write_checkpoint(network: LensNetwork, folder: Path, card: Card) -> Path:
    """Write the weights and their card into *folder*, moved into place, the card first, when both are whole.

    A kill between the two moves leaves a card without weights, or beside those it replaces:
    `verify_checkpoint` refuses either.

    One-dimensional tensors (batch norm, biases, output scale) stay fp32, integers stay as they
    are, the rest is rounded to fp16; `round_weights` does the same in memory.

    Returns:
        Path of the weights.

    Raises:
        ValueError: If a weight is not finite or beyond fp16.
    """
    import safetensors.torch

    tensors = {name: _stored(name, value) for name, value in network.state_dict().items()}
    content = safetensors.torch.save(tensors)
    path = checkpoint_path(folder, card.task, card.architecture)
    folder.mkdir(parents=True, exist_ok=True)
    card = dataclasses.replace(card, sha256=hashlib.sha256(content).hexdigest())
    _replace({path.with_suffix(".json"): card.to_json().encode(), path: content})
    return path


def round_weights(network: LensNetwork) -> None:
    """Round the weights in place to what a checkpoint keeps, so that scores are those of the file."""
    state = network.state_dict()
    for name, value in state.items():
        value.copy_(_stored(name, value))


def revision() -> str:
    """Return the git revision of this checkout (``-dirty`` if changed), or the package's version."""
    root = Path(lensing_models.__file__).resolve().parent.parent
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            pass  # No git program, or a checkout that it refuses: the version has to do.
    return lensing_models.__version__


def _read(path: Path) -> tuple[Card, bytes]:
    """Return card and weights of *path*, checked against each other."""
    if not path.is_file() and not fetch_weights(path):
        raise ValueError(f"no checkpoint {path}; fit it: python -m lensing_models.train")
    card = read_card(path)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != card.sha256:
        raise ValueError(f"{path}: damaged, its SHA-256 is not the one in its card; {_refit(card)}")
    try:
        find_task(card.task)
        input_size = find_architecture(card.architecture).input_size
    except LookupError as error:
        raise ValueError(f"{path}: {error.args[0]}; this checkpoint is of another version of the suite") from error
    if card.input_size not in (0, input_size):
        # The shapes fit at any size, and the answers of another one are other answers.
        sizes = f"{card.input_size} px, and {card.architecture} has {input_size} px now"
        raise ValueError(f"{path} was fitted with an input of {sizes}; {_refit(card)}")
    return card, content


def _refit(card: Card) -> str:
    """Return the remedy for a checkpoint that cannot be used."""
    command = f"python -m lensing_models.train --models {card.architecture} --tasks {card.task} --refit"
    return f"copy it again, or fit it again: {command}"


def _stored(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return *tensor* as a checkpoint keeps it."""
    import torch

    if not tensor.is_floating_point():
        return tensor.contiguous()
    stored = tensor.to(torch.float32 if tensor.ndim < 2 else torch.float16)
    if not bool(torch.isfinite(stored).all()):
        raise ValueError(f"weight {name} is not finite in {stored.dtype}: the fit diverged; lower the learning rate")
    return stored.contiguous()


def _misfit(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str:
    """Return how names and shapes differ, at most three of each; empty if they do not."""
    missing = sorted(expected.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - expected.keys())
    shapes = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name].shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "shape": shapes}
    return "; ".join(f"{what} {', '.join(names[:3])} ({len(names)} in all)" for what, names in found.items() if names)


def _replace(files: Mapping[Path, bytes]) -> None:
    """Write the content of each of *files*; none is moved to its name, in their order, before all are on the disk."""
    drafts = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in files}
    try:
        for path, draft in drafts.items():
            with draft.open("wb") as stream:
                stream.write(files[path])
                stream.flush()
                os.fsync(stream.fileno())
        for path, draft in drafts.items():
            draft.replace(path)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)
