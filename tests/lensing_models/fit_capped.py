"""A capped fit under torchrun, whose every process writes down the network that it got: FOLDER DATA."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from lensing_models.data.store import open_store
from lensing_models.fit import fit
from tests.lensing_models.test_fit import make_job


def main(folder: Path, data: Path) -> None:
    network, _ = fit(make_job(open_store(data)), threads=1, device="cpu")
    torch.save(network.state_dict(), folder / f"network_{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
