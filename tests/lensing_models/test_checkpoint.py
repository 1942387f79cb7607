import copy
import dataclasses
import errno
import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lensing_models.checkpoint import (
    Card,
    checkpoint_path,
    load_checkpoint,
    read_card,
    round_weights,
    verify_checkpoint,
    write_checkpoint,
)
from lensing_models.network import LensNetwork
from lensing_models.registry import find_architecture, find_task

CARD = Card(
    task="halo_mass",
    architecture="mobilenetv3_small",
    recipe_digest="abc",
    sky="model_i",
    preset="quick",
    seed=3,
    steps=100,
    epochs=1.5,
    converged=False,
    scored_images={"validation": 20, "test": 30},
    validation={"mse": 1e-4, "r2": math.nan},
    test={"mse": 2e-4},
    revision="0123",
    versions={"torch": "2.11"},
    recorded_at="2026-01-01T00:00:00+00:00",
)


@pytest.fixture(scope="module")
def network() -> LensNetwork:
    torch.manual_seed(0)
    network = find_architecture(CARD.architecture).build(find_task(CARD.task))
    network.output_shift.fill_(-1.4)
    return network


def test_a_full_disk_leaves_the_checkpoint_that_was_there(
    network: LensNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_checkpoint(network, tmp_path, CARD)
    before = read_card(path)
    flushed = []

    def fsync(number: int) -> None:
        flushed.append(number)
        if len(flushed) == 2:  # the first of the two files is there already
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lensing_models.checkpoint.os.fsync", fsync)
    other = copy.deepcopy(network)
    other.output_shift.fill_(7.0)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(other, tmp_path, dataclasses.replace(CARD, seed=9))

    assert verify_checkpoint(path) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([path.name, path.with_suffix(".json").name])


def kill_between_the_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first of two files reach its name, and no other."""
    moved: list[Path] = []
    move = Path.replace

    def replace(draft: Path, target: Path) -> Path:
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        return move(draft, target)

    monkeypatch.setattr(Path, "replace", replace)


def test_a_kill_between_card_and_weights_leaves_nothing_to_replace(
    network: LensNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_between_the_moves(monkeypatch)

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(network, tmp_path, CARD)

    assert not checkpoint_path(tmp_path, CARD.task, CARD.architecture).exists()


def test_a_kill_while_a_checkpoint_is_replaced_is_found(
    network: LensNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_checkpoint(network, tmp_path, CARD)
    other = copy.deepcopy(network)
    other.output_shift.fill_(7.0)
    kill_between_the_moves(monkeypatch)

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(other, tmp_path, dataclasses.replace(CARD, seed=9))

    with pytest.raises(ValueError, match=r"damaged, its SHA-256 .* --refit"):
        verify_checkpoint(path)


def test_weights_of_another_input_size_are_refused(network: LensNetwork, tmp_path: Path) -> None:
    same = write_checkpoint(network, tmp_path / "same", dataclasses.replace(CARD, input_size=150))
    other = write_checkpoint(network, tmp_path / "other", dataclasses.replace(CARD, input_size=224))

    assert load_checkpoint(same)[0].input_size == 150
    for read in (load_checkpoint, verify_checkpoint):
        with pytest.raises(ValueError, match="an input of 224 px, and mobilenetv3_small has 150 px now"):
            read(other)


@pytest.fixture
def path(network: LensNetwork, tmp_path: Path) -> Path:
    return write_checkpoint(network, tmp_path / "new", CARD)


def reseal(path: Path, **changes: object) -> None:
    """Change the card of *path* and make its digest right again."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    changed = dataclasses.replace(read_card(path), sha256=digest, **changes)
    path.with_suffix(".json").write_text(changed.to_json())


def test_the_files_are_named_by_task_and_architecture(path: Path) -> None:
    assert path == checkpoint_path(path.parent, "halo_mass", "mobilenetv3_small")
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "halo_mass-mobilenetv3_small.json",
        "halo_mass-mobilenetv3_small.safetensors",
    ]


def test_the_card_comes_back_with_the_digest_of_the_weights(path: Path) -> None:
    card = read_card(path)

    assert card.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert math.isnan(card.validation["r2"])
    plain = dataclasses.replace(card, sha256="", validation={})
    assert plain == dataclasses.replace(CARD, validation={})


@pytest.mark.parametrize(
    ("preset", "converged", "state"),
    [
        ("quick", False, "unconverged"),
        ("reference", True, "converged"),
        ("reference", False, "1.5 of 24 epochs"),
        ("standard", False, "1.5 of 10 epochs"),
        ("of one's own", False, "unconverged"),
    ],
)
def test_a_card_tells_how_far_the_fit_went(preset: str, converged: bool, state: str) -> None:
    assert dataclasses.replace(CARD, preset=preset, converged=converged).state == state


def test_an_undefined_metric_is_null_in_the_card(path: Path) -> None:
    assert json.loads(path.with_suffix(".json").read_text())["validation"] == {"mse": 1e-4, "r2": None}


def test_loaded_outputs_are_those_of_the_rounded_network(path: Path, network: LensNetwork) -> None:
    images = torch.rand(2, 1, 150, 150)
    rounded = find_architecture(CARD.architecture).build(find_task(CARD.task))
    rounded.load_state_dict(network.state_dict())
    round_weights(rounded)

    loaded, _ = load_checkpoint(path)

    with torch.inference_mode():
        assert torch.equal(loaded(images), rounded(images))
    assert not loaded.training


def test_one_dimensional_tensors_stay_fp32_and_counters_integer(path: Path) -> None:
    tensors = safetensors.torch.load_file(path)

    assert {value.dtype for value in tensors.values() if value.ndim >= 2} == {torch.float16}
    assert {value.dtype for value in tensors.values() if value.ndim == 1} == {torch.float32}
    assert {value.dtype for value in tensors.values() if value.ndim == 0} == {torch.int64}


def test_loaded_weights_are_fp32_and_within_fp16_rounding(path: Path, network: LensNetwork) -> None:
    loaded, _ = load_checkpoint(path)

    for name, value in network.named_parameters():
        back = loaded.get_parameter(name)
        assert back.dtype == torch.float32
        # Half a unit in the last place of fp16: 2^-11 relative, 2^-25 below its normal range.
        torch.testing.assert_close(back, value, rtol=2**-11, atol=2**-25)


def test_a_weight_beyond_fp16_is_refused(network: LensNetwork, tmp_path: Path) -> None:
    broken = find_architecture(CARD.architecture).build(find_task(CARD.task))
    with torch.no_grad():
        broken.backbone.conv_stem.weight[0, 0, 0, 0] = 1e6

    with pytest.raises(ValueError, match=r"backbone\.conv_stem\.weight is not finite in torch\.float16"):
        write_checkpoint(broken, tmp_path, CARD)
    assert list(tmp_path.iterdir()) == []


def test_no_checkpoint_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint .*x\.safetensors; fit it: python -m lensing_models\.train"):
        load_checkpoint(tmp_path / "x.safetensors")


def test_a_missing_card_is_named(path: Path) -> None:
    path.with_suffix(".json").unlink()

    with pytest.raises(ValueError, match=r"its card halo_mass-mobilenetv3_small\.json is missing"):
        verify_checkpoint(path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"validation": {}, "test": {}, "colour": 1}'])
def test_a_broken_card_is_named(path: Path, text: str) -> None:
    path.with_suffix(".json").write_text(text)

    with pytest.raises(ValueError, match=r"halo_mass-mobilenetv3_small\.json: .*--refit"):
        read_card(path)


def test_a_flipped_bit_is_found(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises(ValueError, match=r"damaged, its SHA-256 .* --tasks halo_mass --refit"):
        load_checkpoint(path)


def test_a_truncated_file_is_found(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])

    with pytest.raises(ValueError, match="damaged"):
        verify_checkpoint(path)


@pytest.mark.parametrize(("field", "match"), [("task", "unknown task 'x'"), ("architecture", "unknown model 'x'")])
def test_an_unknown_task_or_architecture_is_named(path: Path, field: str, match: str) -> None:
    reseal(path, **{field: "x"})

    with pytest.raises(ValueError, match=match):
        verify_checkpoint(path)


def test_weights_of_another_architecture_are_refused(path: Path) -> None:
    reseal(path, architecture="resnet18")

    with pytest.raises(ValueError, match=r"does not fit resnet18 on halo_mass: missing .*unexpected .*in all"):
        load_checkpoint(path)


def test_weights_of_another_task_are_refused(path: Path) -> None:
    reseal(path, task="substructure")

    with pytest.raises(ValueError, match=r"backbone\.classifier\.weight \(1, 1024\) instead of \(3, 1024\)"):
        load_checkpoint(path)


def test_a_file_that_is_not_safetensors_is_refused(path: Path) -> None:
    path.write_bytes(b"not tensors at all")
    reseal(path)

    with pytest.raises(ValueError, match="not a safetensors file"):
        load_checkpoint(path)


def test_reading_a_card_imports_no_torch(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lensing_models.checkpoint import verify_checkpoint;"
        "verify_checkpoint(Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 0
