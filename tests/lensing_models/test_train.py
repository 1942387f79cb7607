import dataclasses
import fcntl
import io
import math
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lensing_models import train
from lensing_models.checkpoint import Card, checkpoint_path, read_card, verify_checkpoint, write_checkpoint
from lensing_models.cluster import Cluster
from lensing_models.data.simulate import simulate_dataset
from lensing_models.data.store import Store
from lensing_models.job import Job
from lensing_models.network import LensNetwork
from lensing_models.preset import PRESETS, Split
from lensing_models.registry import find_architecture, find_task
from lensing_models.train import main, with_loss
from tests.lensing_models.test_checkpoint import CARD

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
    return write_fitted(tmp_path, store)


def write_fitted(folder: Path, store: Store, **changes: object) -> Path:
    """Write a network of random weights with the card of a fit to *store*."""
    torch.manual_seed(0)
    network = find_architecture("mobilenetv3_small").build(MASS)
    facts = {"recipe_digest": store.recipe_digest, "seed": 0, **changes}
    return write_checkpoint(network, folder, dataclasses.replace(CARD, **facts))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Where an unfinished fit has its state; the folder is there."""
    path = tmp_path / "halo_mass-mobilenetv3_small.fit" / "last.ckpt"
    path.parent.mkdir()
    return path


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The architectures of the fits that were made, none of which takes time."""
    made: list[str] = []

    def fit(job: Job, **_: object) -> tuple[LensNetwork, Card]:
        made.append(job.architecture.label)
        return job.architecture.build(job.task), dataclasses.replace(CARD, **dataclasses.asdict(job.identity()))

    monkeypatch.setattr("lensing_models.fit.fit", fit)
    return made


@contextmanager
def another_process(folder: Path, monkeypatch: pytest.MonkeyPatch, deed: Callable[[], object]) -> Iterator[io.StringIO]:
    """Hold *folder* until this process says that it waits, then do *deed* and let go; yield what it says on stderr."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        class Ear(io.StringIO):
            def write(self, text: str) -> int:
                if "another process is fitting into it; waiting" in text:
                    deed()
                    fcntl.flock(lock, fcntl.LOCK_UN)
                return super().write(text)

        ear = Ear()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", ear)
            yield ear


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


@pytest.mark.usefixtures("checkpoint")
def test_a_checkpoint_of_another_fit_is_not_replaced_unasked(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "fit_one", lambda *_: pytest.fail("a fit was begun"))

    with pytest.raises(ValueError, match="is there, of another seed: --refit replaces it"):
        main([*arguments, "--seed", "9"])


def spoil_card(path: Path) -> None:
    text = path.with_suffix(".json").read_text()
    path.with_suffix(".json").write_text(text.replace("{", '{"of a later version": 1,', 1))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.with_suffix(".json").unlink(), "its card .* is missing"),
        (spoil_card, "not a checkpoint card"),
        (lambda path: path.write_bytes(b"half of it"), "damaged"),
    ],
    ids=["no card", "unknown field", "damaged"],
)
def test_weights_that_no_card_explains_are_not_replaced_unasked(
    arguments: list[str], checkpoint: Path, fits: list[str], spoil: Callable[[Path], object], reason: str
) -> None:
    spoil(checkpoint)
    before = checkpoint.read_bytes()

    for words in ([], ["--resume"]):
        with pytest.raises(ValueError, match=f"only --refit replaces .*: .*{reason}"):
            main([*arguments, *words])

    assert not fits
    assert checkpoint.read_bytes() == before
    assert main([*arguments, "--refit"]) == 0
    assert len(fits) == 1
    assert verify_checkpoint(checkpoint).recorded_at == CARD.recorded_at


@pytest.mark.parametrize(("budget", "fitted"), [([], 1), (["--time-budget", "60"], 0)])
def test_what_a_time_budget_cut_short_gives_way_to_a_whole_fit(
    arguments: list[str], tmp_path: Path, store: Store, fits: list[str], budget: list[str], fitted: int
) -> None:
    write_fitted(tmp_path, store, preset="standard", converged=False)

    assert main([*arguments, "--preset", "standard", *budget]) == 0

    assert len(fits) == fitted


def test_a_kept_checkpoint_is_read_once(
    arguments: list[str], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_bytes, read = Path.read_bytes, []
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.append(path), read_bytes(path))[1])

    assert main(arguments) == 0

    assert read.count(checkpoint) == 1


def test_an_unfinished_fit_is_not_dropped_unasked(
    arguments: list[str], state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.write_bytes(b"hours of work")
    begun: list[Job] = []
    monkeypatch.setattr(train, "fit_one", lambda job, *_: begun.append(job))

    with pytest.raises(ValueError, match="was not finished: --resume goes on, --refit begins it anew"):
        main(arguments)

    assert not begun
    assert main([*arguments, "--resume"]) == main([*arguments, "--refit"]) == 0
    assert len(begun) == 2


def test_a_fit_that_runs_elsewhere_is_waited_for_and_kept(
    arguments: list[str],
    tmp_path: Path,
    state: Path,
    store: Store,
    fits: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its state is that of a fit which is not finished yet."""
    state.write_bytes(b"hours of work")

    def finish() -> None:
        write_fitted(tmp_path, store)
        state.unlink()

    with another_process(state.parent, monkeypatch, finish) as said:
        assert main(arguments) == 0

    assert "waiting" in said.getvalue()
    assert "kept" in capsys.readouterr().out
    assert not fits


def test_what_is_fitted_elsewhere_before_the_folder_is_ours_is_kept(
    arguments: list[str], tmp_path: Path, store: Store, fits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended after we had looked, and before we would have waited."""
    hold = train.hold

    @contextmanager
    def hold_late(folder: Path, *, wait: bool) -> Iterator[None]:
        write_fitted(tmp_path, store)
        with hold(folder, wait=wait):
            yield

    monkeypatch.setattr(train, "hold", hold_late)

    assert main(arguments) == 0

    assert not fits


@pytest.mark.parametrize(("finishes", "fitted"), [(True, 0), (False, 1)])
def test_refit_keeps_what_was_fitted_while_it_waited_and_nothing_older(
    arguments: list[str],
    checkpoint: Path,
    state: Path,
    store: Store,
    fits: list[str],
    monkeypatch: pytest.MonkeyPatch,
    finishes: bool,
    fitted: int,
) -> None:
    def end() -> None:
        if finishes:
            write_fitted(checkpoint.parent, store, recorded_at="2026-02-02T00:00:00+00:00")

    with another_process(state.parent, monkeypatch, end) as said:
        assert main([*arguments, "--refit"]) == 0

    assert "waiting" in said.getvalue()
    assert len(fits) == fitted


def test_what_an_interrupted_process_leaves_is_not_dropped_unasked(
    arguments: list[str], state: Path, fits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had no state yet when we came."""
    with (
        another_process(state.parent, monkeypatch, lambda: state.write_bytes(b"hours of work")),
        pytest.raises(ValueError, match="was not finished: --resume goes on, --refit begins it anew"),
    ):
        main(arguments)

    assert state.read_bytes() == b"hours of work"
    assert not fits


def test_what_another_process_fitted_otherwise_is_not_replaced_unasked(
    arguments: list[str], tmp_path: Path, state: Path, store: Store, fits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        another_process(state.parent, monkeypatch, lambda: write_fitted(tmp_path, store, seed=9)),
        pytest.raises(ValueError, match="is there, of another seed: --refit replaces it"),
    ):
        main(arguments)

    assert not fits


class Fabric:
    """Lightning's door between processes that come one after the other, the first of them first."""

    def __init__(self, rank: int, said: queue.SimpleQueue[object]) -> None:
        self.global_rank = rank
        self._said = said

    def broadcast(self, answer: object) -> object:
        if self.global_rank:
            return self._said.get(timeout=5)
        self._said.put(answer)
        return answer


@pytest.mark.parametrize("leftover", [0, 1])
def test_the_first_process_alone_decides_for_all_that_fit_together(
    arguments: list[str], tmp_path: Path, fits: list[str], monkeypatch: pytest.MonkeyPatch, leftover: int
) -> None:
    """Each of two machines has a disk of its own; on one of them lies an unfinished fit."""
    said: queue.SimpleQueue[object] = queue.SimpleQueue()
    state = tmp_path / str(leftover) / "halo_mass-mobilenetv3_small.fit" / "last.ckpt"
    state.parent.mkdir(parents=True)
    state.write_bytes(b"hours of work")
    refused = []

    for rank in (0, 1):
        cluster = Cluster(nodes=2, fabric=Fabric(rank, said))
        monkeypatch.setattr(train, "_cluster", lambda _, cluster=cluster: cluster)
        try:
            main([*arguments, "--out", str(tmp_path / str(rank))])
        except ValueError as error:
            refused.append(str(error))

    assert len(fits) == (2 if leftover == 1 else 0)
    assert len(refused) == (0 if leftover == 1 else 2)
    assert said.empty()


@pytest.mark.usefixtures("checkpoint")
def test_an_unfinished_fit_of_other_circumstances_is_gone_on_with(
    arguments: list[str], state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was begun by `--refit`, over the checkpoint of another seed."""
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
