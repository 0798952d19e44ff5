"""Several processes as one run: who was launched, what they agree on, and the trainer's strategy for them.

Processes are started by `torchrun`, SLURM or tga-train itself (`tga.cli.own_processes`), one per device. The trainer
never starts any: it would re-run the command line, under Hydra a whole sweep. A run that nobody launched is one
process, and every function here then does nothing.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from torch import Tensor, distributed, nn

from tga.errors import UserError

STRATEGIES = ("single", "ddp", "fsdp2", "deepspeed")
PATIENCE = timedelta(days=7)  # NCCL's collectives give up after ten minutes
SHARED_OUT = ("fsdp2", "deepspeed")  # where each process holds a share of the weights or of the optimiser's state


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is: `rank` of `size` in all, `local_rank` of `local_size` on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    @property
    def nodes(self) -> int:
        """Machines."""
        return max(1, self.size // self.local_size)


def launched() -> Processes:
    """What a launcher says of this process; a process of its own where there was none."""
    environment = _environment()
    if environment is None:
        return Processes()
    size = environment.world_size()
    if isinstance(environment, TorchElasticEnvironment):
        local_size = int(os.environ["LOCAL_WORLD_SIZE"])
    else:
        local_size = size // int(os.environ.get("SLURM_NNODES", "1"))
    return Processes(environment.global_rank(), size, environment.local_rank(), local_size)


def is_launched() -> bool:
    """Whether a launcher has started this process, alone or among others."""
    return _environment() is not None


def expected_processes(wanted: int | None) -> int:
    """How many processes a run has: those that were launched, or those `wanted` from tga-train itself."""
    return launched().size if is_launched() else wanted or 1


def check_own_processes(count: int | None, strategy: str, accelerator: str) -> None:
    """Refuse a number of processes that tga-train cannot start here, or a strategy that is not for it.

    Raises:
        UserError: several processes and a strategy of one, the other way round, or more processes than GPUs.
    """
    if is_launched() or count is None:
        return
    given = f"training.processes={count}, training.strategy={strategy}"
    if count > 1 and strategy == "single":
        remedy = "training=ddp (or fsdp2, deepspeed) beside training.processes, or training.processes=null"
        raise UserError("Several processes, and a strategy for one", given=given, remedy=remedy)
    if count == 1 and strategy in SHARED_OUT:
        remedy = "training=default (or ddp), or training.processes=2 and more"
        raise UserError("One process has nobody to share the weights out to", given=given, remedy=remedy)
    devices = torch.cuda.device_count() if accelerator != "cpu" and torch.cuda.is_available() else count
    if count > devices:
        raise UserError(
            "There is not a GPU for each process",
            given=f"training.processes={count}, {devices} GPUs",
            allowed=f"1 to {devices}",
            remedy=f"training.processes={devices}, or torchrun over several machines",
        )


def check_processes(strategy: str, *, sweep: bool = False) -> Processes:
    """Which process this is, of those that the strategy is for; nothing is connected.

    Args:
        strategy: "single", "ddp", "fsdp2" or "deepspeed".
        sweep: this is one of several runs of a Hydra multirun.

    Raises:
        UserError: a strategy of many processes that nobody launched, or in a sweep; many processes for one device.
    """
    if strategy not in STRATEGIES:
        allowed = ", ".join(STRATEGIES)
        raise UserError("Unknown strategy", given=strategy, allowed=allowed, remedy="training=ddp, or training=fsdp2")
    processes = launched()
    if strategy == "single":
        if processes.size > 1:
            raise UserError(
                f"{processes.size} processes were launched, and training.strategy=single is for one",
                remedy="training=ddp (or fsdp2, deepspeed), or tga-train without torchrun",
            )
        return processes
    if sweep:
        raise UserError(
            "A sweep (-m) cannot train with many processes: each of them would run all of it",
            given=f"training.strategy={strategy}",
            remedy="one torchrun for each run, or training.strategy=single",
        )
    if not is_launched():
        raise UserError(
            "This strategy needs its processes to be started",
            given=f"training.strategy={strategy}",
            allowed="torchrun or srun, one process per device; on one machine tga-train starts them too",
            remedy="training.processes=8, or torchrun --nproc-per-node=8 -m tga.cli.train ... training=ddp",
        )
    return processes


def start_processes(strategy: str, accelerator: str, *, sweep: bool = False) -> Processes:
    """:func:`check_processes`, and connect them where there are many.

    Args:
        accelerator: "auto", "cpu" or "cuda"; on CUDA they talk by NCCL, else by Gloo.
    """
    processes, environment = check_processes(strategy, sweep=sweep), _environment()
    if strategy == "single":
        return processes
    assert environment is not None
    cuda = accelerator != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(processes.local_rank)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    distributed.init_process_group("nccl" if cuda else "gloo", rank=processes.rank, world_size=processes.size)
    return processes


def stop_processes() -> None:
    """Part; the first process goes on alone."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def wait_for_all() -> None:
    """Go on when every process is here, however long that takes: some may be building an index, others wait for it."""
    if distributed.is_initialized():
        group = distributed.new_group(backend="gloo", timeout=PATIENCE)
        assert isinstance(group, distributed.ProcessGroup)  # all belong to it
        distributed.barrier(group)
        distributed.destroy_process_group(group)


def agreed(value: Any) -> Any:
    """The first process' value, for all: a time, a directory."""
    if not distributed.is_initialized():
        return value
    holder = [value]
    distributed.broadcast_object_list(holder, src=0)
    return holder[0]


def agree_on(tensors: Sequence[Tensor]) -> None:
    """Give all processes the first one's values, in place: two devices may round differently."""
    if distributed.is_initialized():
        with torch.no_grad():
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)


def total(value: float, device: torch.device) -> float:
    """The sum over processes."""
    if not distributed.is_initialized():
        return value
    holder = torch.tensor([value], dtype=torch.float64, device=device)
    distributed.all_reduce(holder)
    return float(holder)


def means(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Means of named scalars over some batches and over all processes; NaN counts as not there.

    Args:
        parts: one mapping per batch, of the same names everywhere.
    """
    names = list(parts[0])
    device = parts[0][names[0]].device
    scalars = [[part[name].detach().to(device, torch.float64) for name in names] for part in parts]
    values = torch.stack([torch.stack(row) for row in scalars])
    there = ~values.isnan()
    sums = torch.stack([values.nan_to_num().sum(0), there.double().sum(0)])
    if distributed.is_initialized():
        distributed.all_reduce(sums)
    return {n: s / c if c else math.nan for n, s, c in zip(names, sums[0].tolist(), sums[1].tolist(), strict=True)}


def check_deepspeed(accelerator: str) -> None:
    """Refuse DeepSpeed where it cannot start.

    Raises:
        UserError: it is not installed, or there is no CUDA device for it.
    """
    instead = "training=fsdp2, which needs nothing more"
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError("DeepSpeed is not installed", remedy=f"pip install deepspeed, or {instead}")
    if accelerator == "cpu" or not torch.cuda.is_available():
        raise UserError(
            "DeepSpeed trains on CUDA devices alone, and here is none to train on",
            given=f"training.strategy=deepspeed, training.accelerator={accelerator}",
            remedy=f"a machine with GPUs, or {instead}",
        )


def trainer_strategy(strategy: str, processes: Processes, *, all_parameters_used: bool) -> Any:
    """What `lightning.Trainer(strategy=...)` takes.

    Args:
        all_parameters_used: every trained parameter gets a gradient from every batch; DDP asks less then.
    """
    from lightning.pytorch import strategies

    if strategy == "ddp":
        return strategies.DDPStrategy(find_unused_parameters=not all_parameters_used, gradient_as_bucket_view=True)
    if strategy == "fsdp2":
        return strategies.ModelParallelStrategy(
            data_parallel_size=processes.size, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    if strategy == "deepspeed":
        return strategies.DeepSpeedStrategy(stage=2, exclude_frozen_parameters=True)
    return "auto"


def shard(model: nn.Module, layers: Sequence[nn.Module], mesh: Any) -> None:
    """Let each process hold a share of every parameter (FSDP2): the decoder layers one by one, then the rest.

    A layer's parameters are whole while it runs and are given up again behind it. Parameters that do not train are
    shared out as well. Forward hooks that were there stay, and run inside of what is added here.
    """
    from torch.distributed.fsdp import fully_shard

    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def _environment() -> ClusterEnvironment | None:
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    # A batch script for one task has SLURM's variables without srun, too, and nobody beside it.
    if SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1:
        return SLURMEnvironment(auto_requeue=False)
    return None
