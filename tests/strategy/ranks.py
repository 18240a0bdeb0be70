"""Real ranks for tests: a function run in several forked processes on gloo, bounded in time."""

import gc
import os
import pickle
import socket
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from runner.precision.fp32 import FP32
from runner.protocols import Axes, Builder, Clip, Precision, StepGraphs
from runner.protocols.state import MODEL
from runner.storage.names import to_names
from runner.strategy.ddp import DDP
from runner.strategy.deepspeed import DeepSpeed
from runner.strategy.fsdp import FSDP
from runner.strategy.single import Single
from runner.world.group import join_group
from tests.conftest import DEEPSPEED
from tests.zygote import preload, preload_libraries

STRATEGIES = (Single, DDP, FSDP, DeepSpeed)


def builder(
    *,
    build: Callable[[], Module],
    optimizer: Callable[..., torch.optim.Optimizer],
    loss: Callable[..., Any],
    precision: Precision | None = None,
    clip: Clip | None = None,
    step_graphs: StepGraphs | None = None,
) -> Builder:
    """What a strategy builds from: no activation checkpointing, no compiled modules."""
    return Builder(
        build_model=build,
        recompute=lambda model: None,
        compile=lambda model: None,
        build_optimizer=optimizer,
        loss=lambda model, batch, items: loss(model, batch),
        precision=precision or FP32(),
        clip=clip or Clip(),
        step_graphs=step_graphs,
    )


def model_of(trainable: Any) -> Any:
    """The one model."""
    return trainable.models[MODEL]


def named(trainable: Any) -> dict[str, torch.Tensor]:
    """Its state by the names of a checkpoint's files."""
    return to_names(trainable.state_dict())


def on_ranks(
    num_ranks: int,
    function: Callable[..., Any],
    *args: Any,
    scratch: Path,
    timeout_s: float = 60,
    axes: Axes | None = None,
) -> list[Any]:
    """What function(world, *args) returns on each rank. Fails with the first rank's traceback.

    Unless `axes` says otherwise, the mesh is that of the first strategy among the arguments, or all ranks are replicas.
    """
    strategy = next((arg for arg in args if isinstance(arg, STRATEGIES)), DDP())
    _preload(isinstance(strategy, DeepSpeed))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    scratch.mkdir(exist_ok=True)
    axes = axes or strategy.axes(num_ranks)
    pids = [_start(rank, axes, port, function, args, scratch / f"rank_{rank}.pickle") for rank in range(num_ranks)]
    deadline = time.monotonic() + timeout_s
    running = set(pids)
    while running and time.monotonic() < deadline:
        running -= {pid for pid in running if os.waitpid(pid, os.WNOHANG)[0]}
        time.sleep(0.01)
    for pid in running:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    results = [path.read_bytes() for path in sorted(scratch.glob("rank_*.pickle"))]
    answers = [pickle.loads(result) for result in results]
    failures = [failure for _, failure in answers if failure]
    assert not failures, "\n".join(failures)
    assert not running, f"ranks ran past {timeout_s} s"
    assert len(answers) == num_ranks, "a rank died"
    return [answer for answer, _ in answers]


@cache
def _preload(deepspeed: bool) -> None:
    """Once, rather than in every rank; the import of DeepSpeed takes 0.6 s of CPU."""
    with warnings.catch_warnings(action="ignore"):
        preload()
        if deepspeed:
            preload_libraries(DEEPSPEED)


def _start(rank: int, axes: Axes, port: int, function: Callable[..., Any], args: tuple[Any, ...], path: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    answer = failure = None
    try:
        gc.freeze()  # DeepSpeed collects garbage, which would copy every page of the tests' process
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(axes.size(axes.names)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        torch.set_num_threads(1)
        timeout = timedelta(seconds=30)
        world = join_group(torch.device("cpu"), axes=axes, backend="gloo", local_rank=rank, timeout=timeout)
        answer = function(world, *args)
        world.barrier()
    except BaseException:  # noqa: BLE001  whatever it was, the test shows it
        failure = traceback.format_exc()
    path.write_bytes(pickle.dumps((answer, failure)))
    os._exit(0)
