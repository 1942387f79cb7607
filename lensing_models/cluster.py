"""Several processes that fit one network together, started by torchrun or by SLURM; alone without them."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """The processes that were started together, this one among them.

    Attributes:
        nodes: Machines.
        processes_a_node: Processes on each; on CUDA each has a GPU of its own.
        fabric: Lightning's door to the others; None for a process alone.
    """

    nodes: int = 1
    processes_a_node: int = 1
    fabric: Fabric | None = None

    @property
    def processes(self) -> int:
        """Return how many there are in all."""
        return self.nodes * self.processes_a_node

    @property
    def rank(self) -> int:
        """Return the number of this process; 0 is the one that writes and speaks."""
        return self.fabric.global_rank if self.fabric else 0

    def decide(self, work: Callable[[], T]) -> T:
        """Return what *work* gives on process 0; every process calls it.

        Raises:
            ValueError: Everywhere, if *work* raised a caller's mistake there; alone, what it raised.
        """
        if not self.fabric:
            return work()
        answer: tuple[T | None, str] = (None, "")
        if self.rank == 0:
            try:
                answer = (work(), "")
            except (ValueError, LookupError, OSError) as error:
                answer = (None, str(error) or type(error).__name__)
        value, mistake = self.fabric.broadcast(answer)
        if mistake:
            raise ValueError(mistake)
        return value  # type: ignore[return-value]  # None only beside a mistake, or where work gives None

    def average(self, values: Iterable[torch.Tensor]) -> None:
        """Replace each of *values*, in place, by its mean over all processes; every process calls it."""
        if not self.fabric:
            return
        for value in values:
            torch.distributed.all_reduce(value)
            value /= self.processes

    def gather(self, parts: list[T]) -> list[T]:
        """Return the *parts* of all processes, in the order of their ranks; every process calls it."""
        if not self.fabric:
            return parts
        every: list[list[T]] = [[] for _ in range(self.processes)]
        torch.distributed.all_gather_object(every, parts)
        return [part for own in every for part in own]


def join_cluster(device: str) -> Cluster:
    """Return the processes that torchrun or SLURM started, after meeting them.

    Args:
        device: ``cpu`` (they talk through gloo) or ``cuda`` (NCCL), as `find_device` gives it.

    Raises:
        ValueError: If SLURM's tasks are spread unevenly over the nodes, or a node has too few GPUs.
    """
    nodes, processes = started_processes()
    if processes == 1:
        return Cluster()
    if processes % nodes:
        raise ValueError(f"{processes} tasks on {nodes} nodes: give each node as many (srun --ntasks-per-node)")
    local = processes // nodes
    if device == "cuda" and local > torch.cuda.device_count():
        raise ValueError(f"{local} processes on a node with {torch.cuda.device_count()} GPUs: give each one of its own")
    accelerator = "gpu" if device == "cuda" else "cpu"
    fabric = Fabric(
        accelerator=accelerator, devices=local, num_nodes=nodes, strategy="ddp", plugins=[environment_plugin()]
    )
    fabric.launch()
    # Lightning leaves only NCCL's. gloo's threads that outlive the interpreter abort about every seventh exit.
    atexit.unregister(_leave_cluster)
    atexit.register(_leave_cluster)
    return Cluster(nodes=nodes, processes_a_node=local, fabric=fabric)


def _leave_cluster() -> None:
    """End the threads through which the processes talk."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def find_device(device: str) -> str:
    """Return ``cpu`` or ``cuda`` for ``auto`` and these; ValueError where there is no such GPU."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no usable GPU here; known: cpu")
    return device


def environment_plugin() -> ClusterEnvironment:
    """Return Lightning's reading of the environment; inside an allocation without srun, that of a process alone."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    # Its requeueing writes into the current folder what a later fit there would load unasked.
    return SLURMEnvironment(auto_requeue=False) if started_processes()[1] > 1 else LightningEnvironment()


def started_processes() -> tuple[int, int]:
    """Return nodes and processes in all, as the environment tells: torchrun's first, then that of a step of srun."""
    if TorchElasticEnvironment.detect():
        processes = int(os.environ["WORLD_SIZE"])
        return processes // int(os.environ.get("LOCAL_WORLD_SIZE", processes)), processes
    if "SLURM_STEP_NUM_TASKS" in os.environ and SLURMEnvironment.detect():
        return int(os.environ.get("SLURM_STEP_NUM_NODES", 1)), int(os.environ["SLURM_STEP_NUM_TASKS"])
    return 1, 1
