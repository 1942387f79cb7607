import dataclasses
import fcntl
import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from lensing_models import train
from lensing_models.checkpoint import checkpoint_path, read_card, verify_checkpoint, write_checkpoint
from lensing_models.data.simulate import simulate_dataset
from lensing_models.data.store import Store
from lensing_models.job import Job
from lensing_models.preset import PRESETS, Split
from lensing_models.registry import find_architecture, find_task
from lensing_models.train import kept_card, main, with_loss
from tests.lensing_models.test_checkpoint import CARD
from tests.lensing_models.test_fit import make_job

MASS = find_task("halo_mass")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("data") / "halo_mass"
    return simulate_dataset(MASS, Split(train=12, validation=4, test=4), folder)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make preset quick a single epoch of the tiny store."""
    monkeypatch.setattr(train, "PRESETS", {"quick": dataclasses.replace(PRESETS["quick"], epochs={"default": 1})})


@pytest.fixture
def arguments(store: Store, tmp_path: Path) -> list[str]:
    chosen = ["--models", "mobilenetv3_small", "--tasks", "halo_mass", "--device", "cpu", "--threads", "1"]
    return [*chosen, "--data", str(store.folder.parent), "--out", str(tmp_path)]


@pytest.fixture
def checkpoint(tmp_path: Path, store: Store) -> Path:
    """A checkpoint of preset quick, seed 0, that claims to be fitted on the store."""
    torch.manual_seed(0)
    network = find_architecture("mobilenetv3_small").build(MASS)
    return write_checkpoint(network, tmp_path, dataclasses.replace(CARD, recipe_digest=store.recipe_digest, seed=0))


@pytest.mark.usefixtures("tiny")
def test_a_network_is_fitted_written_and_told(
    arguments: list[str], tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0

    card = verify_checkpoint(checkpoint_path(tmp_path, "halo_mass", "mobilenetv3_small"))
    assert (card.recipe_digest, card.preset, card.steps) == (store.recipe_digest, "quick", 1)
    assert not list(tmp_path.glob("*.fit/*.ckpt"))
    printed = capsys.readouterr()
    assert printed.out.startswith(f"halo_mass/mobilenetv3_small: mse {card.test['mse']:.4g}")
    assert "(unconverged, fitted; 4 test images)" in printed.out
    assert "fit halo_mass/mobilenetv3_small: 1/1 validation mse" in printed.err


def test_a_checkpoint_of_the_same_data_preset_and_seed_is_kept_and_said_so(
    arguments: list[str], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = checkpoint.read_bytes()

    assert main(arguments) == 0

    assert checkpoint.read_bytes() == before
    assert "(unconverged, kept; 30 test images)" in capsys.readouterr().out


@pytest.mark.usefixtures("tiny")
def test_refit_fits_what_is_there(arguments: list[str], checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--refit"]) == 0

    assert read_card(checkpoint).steps == 1
    assert "--refit; fitting" in capsys.readouterr().err


@pytest.mark.parametrize(("whole", "kept"), [(True, False), (False, True)])
def test_a_fit_that_a_time_budget_cut_short_is_not_kept_for_a_whole_one(
    checkpoint: Path, store: Store, whole: bool, kept: bool
) -> None:
    cut = dataclasses.replace(read_card(checkpoint), preset="standard", converged=False)
    checkpoint.with_suffix(".json").write_text(cut.to_json())

    card, why = kept_card(checkpoint, make_job(store, preset=PRESETS["standard"]), whole=whole)

    assert bool(card) == kept
    assert why == ("" if kept else "a time budget cut it short")


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("recipe_digest", "x"),
        ("preset", "standard"),
        ("seed", 9),
        ("teacher", "x"),
        ("start", "x"),
        ("pretrained_file", "x"),
        ("stream", True),
        ("focal_gamma", 2.0),
    ],
)
def test_a_checkpoint_of_other_circumstances_is_not_kept(
    checkpoint: Path, store: Store, change: str, value: object
) -> None:
    changed = dataclasses.replace(read_card(checkpoint), **{change: value})
    checkpoint.with_suffix(".json").write_text(changed.to_json())

    assert kept_card(checkpoint, make_job(store, preset=PRESETS["quick"])) == (None, f"another {change}")


@pytest.mark.usefixtures("checkpoint")
def test_a_checkpoint_of_another_fit_is_not_replaced_unasked(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "fit_one", lambda *_: pytest.fail("a fit was begun"))

    with pytest.raises(ValueError, match="is there, of another seed: --refit replaces it"):
        main([*arguments, "--seed", "9"])


def test_an_unfinished_fit_is_not_dropped_unasked(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "halo_mass-mobilenetv3_small.fit" / "last.ckpt"
    state.parent.mkdir()
    state.write_bytes(b"hours of work")
    begun: list[Job] = []
    monkeypatch.setattr(train, "fit_one", lambda job, *_: begun.append(job))

    with pytest.raises(ValueError, match="was not finished: --resume goes on, --refit begins it anew"):
        main(arguments)

    assert not begun
    assert main([*arguments, "--resume"]) == main([*arguments, "--refit"]) == 0
    assert len(begun) == 2


def test_two_processes_do_not_fit_into_one_folder(tmp_path: Path) -> None:
    with (
        train.hold(tmp_path / "x.fit", wait=True) as waited,
        pytest.raises(ValueError, match="another process is fitting into it"),
        train.hold(tmp_path / "x.fit", wait=False),
    ):
        pytest.fail("both were")

    assert not waited


@pytest.mark.usefixtures("tiny", "checkpoint")
def test_what_another_process_has_fitted_meanwhile_is_kept(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It holds the folder until we have said that we wait."""
    folder = tmp_path / "halo_mass-mobilenetv3_small.fit"
    folder.mkdir()
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Timer(1.0, lambda: fcntl.flock(lock, fcntl.LOCK_UN)).start()

        assert main([*arguments, "--refit"]) == 0

    said = capsys.readouterr()
    assert "another process is fitting into it; waiting" in said.err
    assert "kept" in said.out


def test_an_unfinished_fit_of_other_circumstances_is_gone_on_with(
    arguments: list[str], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was begun by `--refit`, over the checkpoint of another seed."""
    state = checkpoint.with_suffix(".fit") / "last.ckpt"
    state.parent.mkdir()
    state.write_bytes(b"hours of work")
    begun: list[Job] = []
    monkeypatch.setattr(train, "fit_one", lambda job, *_: begun.append(job))

    with pytest.raises(ValueError, match="was not finished"):
        main([*arguments, "--seed", "9"])
    assert main([*arguments, "--seed", "9", "--resume"]) == 0

    assert [job.seed for job in begun] == [9]


def test_the_loss_can_be_chosen() -> None:
    galaxies = find_task("galaxy_morphology")

    assert with_loss(galaxies, 0.0, None) == dataclasses.replace(galaxies, focal_gamma=0.0)
    assert with_loss(MASS, None, None) == MASS


@pytest.mark.parametrize(("gamma", "balance"), [(-1.0, None), (None, -0.5), (math.nan, None), (None, math.inf)])
def test_a_negative_focus_or_balance_is_refused(gamma: float | None, balance: float | None) -> None:
    with pytest.raises(ValueError, match="start at 0"):
        with_loss(find_task("substructure"), gamma, balance)


def test_a_loss_that_does_not_fit_a_task_is_found_before_the_first_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(train, "fit_one", lambda *_: pytest.fail("a fit was begun"))

    with pytest.raises(ValueError, match="no classes to focus on"):
        main(["--models", "all", "--tasks", "all", "--focal-gamma", "2", "--out", str(tmp_path)])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_a_mistake(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match="torch finds no usable GPU"):
        main([*arguments, "--device", "cuda"])


def test_a_regression_has_no_focus() -> None:
    with pytest.raises(ValueError, match="no classes to focus on"):
        with_loss(MASS, 2.0, None)


def test_a_damaged_checkpoint_is_not_kept(checkpoint: Path, store: Store) -> None:
    checkpoint.write_bytes(b"")

    card, why = kept_card(checkpoint, make_job(store, preset=PRESETS["quick"]))

    assert card is None
    assert "damaged" in why


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "resnet19"], "Did you mean 'resnet18'?"),
        (["--preset", "huge"], "invalid choice: 'huge'"),
        (["--threads", "0"], "threads start at 1"),
        (["--data", "nowhere"], "no data set for halo_mass"),
        (["--teacher", "nowhere"], "no checkpoint nowhere"),
        (["--workers", "-1"], "give 0 or more"),
        (["--start", "nowhere", "--models", "resnet18"], "no checkpoint nowhere"),
    ],
)
def test_bad_arguments_are_one_line_with_exit_code_2(words: list[str], message: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lensing_models.train", "--tasks", "halo_mass", "--out", str(tmp_path), *words]

    answer = subprocess.run(command, capture_output=True, text=True, check=False)

    assert answer.returncode == 2
    assert message in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_wrong_names_are_refused_before_torch_is_imported() -> None:
    code = (
        "import sys; from lensing_models.train import main\n"
        "try: main(['--models', 'resnet19', '--out', '.'])\n"
        "except LookupError: sys.exit('torch' in sys.modules)\n"
        "sys.exit(3)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
