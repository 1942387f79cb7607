"""The index: what it lists is what lies there, and what it fetches is what it lists."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from lensing_models.checkpoint import read_card, verify_checkpoint, write_checkpoint
from lensing_models.checkpoint_index import INDEX, Entry, fetch_weights, read_index
from lensing_models.registry import find_architecture, find_task
from lensing_models.zoo import PAGE, main, write_index
from tests.lensing_models.test_checkpoint import CARD

PUBLISHED = Path(__file__).resolve().parents[2] / "results" / "checkpoints"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Return a checkpoint in a folder with an index."""
    torch.manual_seed(0)
    network = find_architecture(CARD.architecture).build(find_task(CARD.task))
    path = write_checkpoint(network, tmp_path / "checkpoints", CARD)
    write_index(path.parent)
    return path


def upload(weights: Path, folder: Path) -> None:
    """Move *weights* to *folder* and say so in their index."""
    folder.mkdir()
    weights.replace(folder / weights.name)
    write_index(weights.parent, url_prefix=folder.as_uri())


def test_the_index_gives_name_digest_and_size(weights: Path) -> None:
    content = weights.read_bytes()

    assert read_index(weights.parent) == {
        weights.name: Entry(name=weights.name, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    }


def test_missing_weights_are_fetched_once(weights: Path, tmp_path: Path) -> None:
    content = weights.read_bytes()
    upload(weights, tmp_path / "elsewhere")

    assert fetch_weights(weights)
    assert weights.read_bytes() == content
    assert not fetch_weights(weights)


def test_whoever_reads_a_checkpoint_gets_weights_that_an_index_above_knows(weights: Path, tmp_path: Path) -> None:
    below = weights.parent / "below"
    below.mkdir()
    for path in (weights, weights.with_suffix(".json")):
        path.replace(below / path.name)
    elsewhere = tmp_path / "elsewhere"
    write_index(weights.parent, url_prefix=elsewhere.as_uri())
    (elsewhere / "below").mkdir(parents=True)
    (below / weights.name).replace(elsewhere / "below" / weights.name)

    assert verify_checkpoint(below / weights.name).task == CARD.task


def test_weights_without_an_address_are_not_fetched(weights: Path) -> None:
    weights.unlink()

    assert not fetch_weights(weights)


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + b"x", bytes.swapcase])
def test_other_bytes_under_the_address_are_refused(weights: Path, tmp_path: Path, change: object) -> None:
    elsewhere = tmp_path / "elsewhere"
    upload(weights, elsewhere)
    (elsewhere / weights.name).write_bytes(change((elsewhere / weights.name).read_bytes()))

    with pytest.raises(ValueError, match="another length or SHA-256"):
        fetch_weights(weights)
    assert not weights.exists()


def test_an_address_that_answers_nothing_is_named(weights: Path, tmp_path: Path) -> None:
    upload(weights, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / weights.name).unlink()

    with pytest.raises(OSError, match="could not be fetched from file://"):
        fetch_weights(weights)


def test_an_address_of_another_kind_is_refused(weights: Path) -> None:
    weights.unlink()
    write_index(weights.parent, url_prefix="ftp://example.org")

    with pytest.raises(ValueError, match="is no address of https"):
        fetch_weights(weights)


def test_an_address_is_kept_while_the_weights_are_the_same(weights: Path) -> None:
    write_index(weights.parent, url_prefix="https://example.org/")

    assert write_index(weights.parent)[0].url == f"https://example.org/{weights.name}"


def test_new_weights_under_an_old_address_are_refused(weights: Path) -> None:
    write_index(weights.parent, url_prefix="https://example.org")
    torch.manual_seed(1)
    network = find_architecture(CARD.architecture).build(find_task(CARD.task))
    write_checkpoint(network, weights.parent, dataclasses.replace(CARD, seed=4))

    with pytest.raises(ValueError, match="no longer what https"):
        write_index(weights.parent)


def test_a_damaged_index_is_named(weights: Path) -> None:
    (weights.parent / INDEX).write_text("[{}]")

    with pytest.raises(ValueError, match="is not an index"):
        read_index(weights.parent)


def test_the_command_prints_a_line_for_each(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(weights.parent)]) == 0

    assert capsys.readouterr().out.startswith(f"{weights.name}  ")


def test_an_entry_whose_card_is_gone_is_forgotten(weights: Path) -> None:
    weights.unlink()
    weights.with_suffix(".json").unlink()

    assert main([str(weights.parent)]) == 0

    assert not read_index(weights.parent)


def test_a_page_of_something_else_is_not_replaced(weights: Path, tmp_path: Path) -> None:
    (tmp_path / PAGE).write_text("# My project\n")

    with pytest.raises(SystemExit):
        main([str(tmp_path)])

    assert (tmp_path / PAGE).read_text() == "# My project\n"
    assert not (tmp_path / INDEX).exists()


def test_the_index_above_is_found_from_within_a_folder(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = weights.parent / "below"
    below.mkdir()
    for path in (weights, weights.with_suffix(".json")):
        path.replace(below / path.name)
    write_index(weights.parent, url_prefix=weights.parent.as_uri())
    shutil.move(below, tmp_path / "elsewhere")
    below.mkdir()
    entry = dataclasses.replace(
        read_index(weights.parent)[f"below/{weights.name}"], url=(tmp_path / "elsewhere" / weights.name).as_uri()
    )
    (weights.parent / INDEX).write_text(json.dumps([dataclasses.asdict(entry)]))
    monkeypatch.chdir(below)

    assert fetch_weights(Path(weights.name))
    assert (below / weights.name).is_file()


def test_the_page_tells_each_checkpoint_beside_what_was_published(weights: Path) -> None:
    facts = {"test": {"mse": 4.8e-5}, "intervals": {"mse": (4.1e-5, 5.5e-5)}, "converged": True, "epochs": 12.0}
    card = dataclasses.replace(read_card(weights), **facts)
    weights.with_suffix(".json").write_text(card.to_json())

    main([str(weights.parent)])

    page = (weights.parent / PAGE).read_text()
    row = next(line for line in page.splitlines() if line.startswith("| mobilenetv3_small"))
    assert "4.8e-05 (4.1e-05 to 5.5e-05)" in row
    assert "mse 6.1e-05" in row  # of the archives
    assert "unconverged" not in row


def test_the_published_index_is_of_the_published_checkpoints() -> None:
    stated = read_index(PUBLISHED)
    found = {path.relative_to(PUBLISHED).as_posix(): path for path in PUBLISHED.rglob("*.safetensors")}

    assert found
    assert found.keys() <= stated.keys()
    for name, path in found.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == stated[name].sha256
        assert json.loads(path.with_suffix(".json").read_text())["sha256"] == stated[name].sha256
