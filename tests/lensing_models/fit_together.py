"""A fit with frozen batch norm, alone or under torchrun, that writes down what it computed: FOLDER DATA."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from lensing_models.cluster import join_cluster
from lensing_models.data.store import open_store
from lensing_models.fit import new_network
from lensing_models.fit_module import FitModule, Means
from lensing_models.loop import run_loop
from lensing_models.progress import ProgressLine
from tests.lensing_models.test_fit import WHOLE, make_job


class Witness(FitModule):
    """Keeps the gradients of the first step, when the processes have put theirs together."""

    gradients: list[torch.Tensor] | None = None

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if Witness.gradients is None:
            Witness.gradients = [value.grad.clone() for value in self.network.parameters()]


def main(folder: Path, data: Path) -> None:
    from lensing_models import loop

    loop.FitModule = Witness
    torch.set_num_threads(1)
    job = make_job(open_store(data), preset=WHOLE)
    network = new_network(job)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            nn.init.ones_(module.weight)
    means = Means(cluster=join_cluster("cpu"))
    folder.mkdir(exist_ok=True)
    with ProgressLine("fit", job.steps, silent=True) as progress:
        run_loop(job, network, means, progress=progress, folder=folder)
    found = {"gradients": Witness.gradients, "weights": list(network.parameters())}
    torch.save(found, folder / f"found_{means.cluster.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
