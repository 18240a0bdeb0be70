"""CPU time of an optimizer's step as a recipe builds it, compared with torch's default for the CPU.

Both update the same weights with the same gradients, in alternation. One thread.

    python benchmarks/optimizers.py
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from runner.optimizer.adamw import AdamW
from runner.optimizer.sgd import SGD

MODELS: dict[str, Callable[[], nn.Module]] = {
    "2,800 weights": lambda: nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 10)),
    "900,000 weights": lambda: nn.Sequential(*(block(128) for _ in range(4)), nn.Linear(128, 1000)),
    "34 million weights": lambda: nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(8))),
}
OPTIMIZERS: dict[str, Callable[[bool | None], AdamW | SGD]] = {
    "adamw": lambda fused: AdamW(fused=fused),
    "sgd, momentum 0.9": lambda fused: SGD(lr=1e-3, momentum=0.9, fused=fused),
}


def block(width: int) -> nn.Module:
    """The weights of a transformer's block."""
    shapes = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
    return nn.Sequential(*(nn.Linear(*shape) for shape in shapes))


def built(optimizer: AdamW | SGD, model: nn.Module) -> Optimizer:
    """The optimizer of a model that has gradients."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 1e-2
    return optimizer.build(model.named_parameters(), items=32)


def step_s(optimizer: Optimizer, steps: int) -> float:
    """CPU seconds of one step."""
    began = time.process_time()
    for _ in range(steps):
        optimizer.step()
    return (time.process_time() - began) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print("one step                                            torch     ours    ratio   largest difference")
    for size, build in MODELS.items():
        for name, option in OPTIMIZERS.items():
            torch.manual_seed(0)
            models = build(), build()
            models[1].load_state_dict(models[0].state_dict())
            both = [built(option(fused), model) for fused, model in zip((False, None), models, strict=True)]
            steps = max(3, 300_000 // sum(one.numel() for one in models[0].parameters()))
            taken = [[step_s(one, steps) for one in both] for _ in range(repeats + 1)][1:]
            theirs, ours = (1e6 * statistics.median(times) for times in zip(*taken, strict=True))
            weights = zip(*(model.parameters() for model in models), strict=True)
            apart = max((one - other).abs().max().item() for one, other in weights)
            print(
                f"{f'{size}, {name}':45} {theirs:9.0f}us {ours:6.0f}us {ours / theirs:7.2f}   {apart:.0e}", flush=True
            )


if __name__ == "__main__":
    main()
