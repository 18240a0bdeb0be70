"""Hooks that ask for the ranks of their run, and losses that compare each item with all others of the step."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from user_hooks.points import Points
from user_hooks.points import build_model as build_plain_model

from runner import Collectives, Data, Loss


def build_model(world: Collectives, width: int = 8) -> nn.Module:
    """Knows how many ranks there are, before launch too."""
    assert world.gather_objects(world.size) == [world.size] * world.size
    return build_plain_model(width)


def build_data(world: Collectives, items: int = 13) -> Data:
    """Rank 0 writes what the others read."""
    file = Path("items.txt")
    with world.main_first():
        if world.is_main:
            file.write_text(str(items))
        found = int(file.read_text())
    return Data(train=Points(found, 0), eval=Points(5, 1))


def contrast(rows: Tensor, everyone: Tensor, own: slice) -> Tensor:
    """The summed cross-entropy of finding each row among all."""
    return F.cross_entropy(rows @ everyone.T, torch.arange(own.start, own.stop), reduction="sum")


def gathered_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], world: Collectives) -> Loss:
    rows = model(batch[0])
    everyone, own = world.gather_with_grad(rows)
    return Loss(contrast(rows, everyone, own), len(rows))


def plain_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The same on one process, without asking for anything."""
    rows = model(batch[0])
    return contrast(rows, rows, slice(0, len(rows))) / len(rows)


def by_hand(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """As a person would write it first: all ranks must have equally many items."""
    rows = model(batch[0])
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.detach())
    return F.cross_entropy(rows @ torch.cat(parts).T, torch.arange(len(rows)))


def unpaired(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], world: Collectives) -> Tensor:
    """In an uneven step, ranks call different collectives."""
    rows = model(batch[0])
    if len(rows) == 2:
        world.reduce(rows.mean(0))
    else:
        world.gather(rows)
    return rows.square().mean()


def alone(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], world: Collectives) -> Tensor:
    """Rank 0 calls a collective that no other rank calls; those go on to exchange gradients."""
    rows = model(batch[0])
    if world.is_main:
        world.gather(rows)
    return rows.square().mean()


def slipped(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Loss:
    """Rank 0 sums a number that no other rank sums; those go on to sum the step's count."""
    rows = model(batch[0])
    if dist.get_rank() == 0:
        dist.all_reduce(rows.detach().mean())
    return Loss(rows.square().sum(), len(rows))
