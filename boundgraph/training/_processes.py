"""Several processes training one model, started by `torchrun`; one process is the usual case."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from boundgraph.errors import ConfigError
from boundgraph.training.losses import TrainingLoss
from boundgraph.training.recipes import Recipe

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among its peers.

    Args:
        rank, world: number of this process, and of all.
        device: of this process.
        joined: whether this object started torch.distributed and has to end it.
    """

    rank: int
    world: int
    device: torch.device
    joined: bool = False

    @classmethod
    def join(cls, device: torch.device) -> Processes:
        """Meet the other processes where `torchrun` started several."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1 or not dist.is_available():
            return cls(0, 1, device)
        fresh = not dist.is_initialized()
        if fresh:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), dist.get_world_size(), device, fresh)

    def leave(self) -> None:
        if self.joined:
            dist.destroy_process_group()

    def share(self, count: int, name: str) -> int:
        """This process's part of a count that is meant for all of them."""
        if count % self.world:
            raise ConfigError(f"{name} {count} cannot be divided among {self.world} processes")
        return count // self.world

    def make_loss(
        self,
        recipe: Recipe,
        model: nn.Module,
        eps: float,
        clip: tuple[float, float] | None,
        norm: float,
        seed: int,
    ) -> TrainingLoss:
        """The recipe's loss over this process's part of each batch."""
        if self.world == 1:
            return recipe.make_loss(model, eps, clip=clip, norm=norm, seed=seed)
        if recipe.subset is not None:
            recipe = replace(recipe, subset=self.share(recipe.subset, "subset"))
        ids = [self.device] if self.device.type == "cuda" else None
        wrapped = nn.parallel.DistributedDataParallel(model, device_ids=ids)
        return recipe.make_loss(wrapped, eps, clip=clip, norm=norm, seed=seed)

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Means over the processes, equal in all of them."""
        if self.world == 1:
            return dict(values)
        stacked = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(stacked)
        return dict(zip(values, (stacked / self.world).tolist(), strict=True))

    def only_first(self, action: Callable[[], T], otherwise: T) -> T:
        """Do something in the first process, then let all go on.

        An error in the first process ends the others through the launcher.
        """
        result = action() if self.rank == 0 else otherwise
        if self.world > 1:
            dist.barrier()
        return result
