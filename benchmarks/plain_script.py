"""The reference for benchmarks/startup.py: a hand-written training of the MLP, with DDP if torchrun started it."""

import os
import sys
from functools import partial
from typing import Any

import mlp
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler


def main() -> None:
    marker = sys.argv[1]
    model = mlp.build_model()
    data = mlp.build_data()
    batches: dict[str, Any] = {"batch_size": 32, "shuffle": True}
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        torch.set_num_threads(1)
        model = DistributedDataParallel(model)
        batches = {"batch_size": 16, "sampler": DistributedSampler(data.train)}
    loss = partial(mlp.compute_loss, model, marker=marker)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for batch in DataLoader(data.train, collate_fn=data.collate, **batches):
        loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    main()
