"""The contestants of benchmarks/peers.py: the same training, as each library's documentation writes it."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlp
import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

STEPS = 1500
LOG_EVERY = 10
ITEMS = 32
PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))
RANK = int(os.environ.get("RANK", "0"))


class Order(Sampler[int]):
    """The items of all steps, in the runner's order."""

    def __init__(self) -> None:
        from runner.data.order import Shuffled

        shuffled = Shuffled(mlp.ITEMS, seed=0)
        epochs = range(-(-STEPS * ITEMS // mlp.ITEMS))
        self.indices = [at for epoch in epochs for at in shuffled.indices(epoch, 0, mlp.ITEMS).tolist()][
            : STEPS * ITEMS
        ]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class Setting:
    """What a variant asks for, and what every library begins with."""

    def __init__(self, variant: str, directory: Path) -> None:
        self.directory = directory
        self.accumulate = 4 if variant == "accumulate" else 1
        self.items = ITEMS // self.accumulate // PROCESSES
        self.clip = 0.1 if variant == "clip" else None
        self.bf16 = variant == "bf16"
        self.board = variant == "tensorboard"
        torch.manual_seed(0)
        self.model = mlp.build_model()

    def optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        return torch.optim.SGD((model or self.model).parameters(), lr=0.01)

    def loader(self, *, divided: bool = False) -> DataLoader[Any]:
        """Micro-batches in order; `divided` = only those items that a DistributedSampler gives this process."""
        order: Any = Order()
        if divided and PROCESSES > 1:
            order = order.indices[RANK::PROCESSES]
        return DataLoader(mlp.Points(), sampler=order, batch_size=self.items, collate_fn=as_it_is)


def as_it_is(batch: Any) -> Any:
    return batch


Trained = tuple[float, nn.Module]
"""CPU seconds of the loop, and the model."""


def by_hand(setting: Setting) -> Trained:
    """A loop as one writes it, with DDP where there are two processes."""
    model: nn.Module = setting.model
    if PROCESSES > 1:
        torch.distributed.init_process_group("gloo")
        model = nn.parallel.DistributedDataParallel(model)
    optimizer, rounds = setting.optimizer(), setting.accumulate
    board = _board(setting)
    began = time.process_time()
    for number, batch in enumerate(setting.loader(divided=True), start=1):
        updates = number % rounds == 0
        with model.no_sync() if PROCESSES > 1 and not updates else contextlib.nullcontext():  # type: ignore[operator]
            with torch.autocast("cpu", torch.bfloat16, enabled=setting.bf16):
                loss = mlp.compute_loss(model, batch)
            (loss / rounds if rounds > 1 else loss).backward()
        if updates:
            if setting.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), setting.clip)
            optimizer.step()
            optimizer.zero_grad()
            _note(number // rounds, loss, setting, board)
    return _ended(began, board), setting.model


def runner(setting: Setting) -> Trained:
    """This runner's engine, in the processes that torchrun has started."""
    from datetime import timedelta

    from runner import log
    from runner.composition.compose import compose
    from runner.composition.find_recipe import find
    from runner.config.run_dir import RunDir
    from runner.engine.loop import train
    from runner.engine.session import open_session
    from runner.world.group import join_group
    from runner.world.solo import SoloWorld
    from runner.world.stop import StopRequest

    overrides = [f"run.steps={STEPS}", f"log.every_steps={LOG_EVERY}", f"batch.micro_items={setting.items}"]
    overrides += ["hardware=cpu", f"hardware.processes={PROCESSES}"] + (["strategy=ddp"] if PROCESSES > 1 else [])
    overrides += [f"clip.norm={setting.clip}"] if setting.clip else []
    overrides += ["precision=bf16"] if setting.bf16 else []
    overrides += ["tracker=[tensorboard]"] if setting.board else []
    spec = compose(find(str(Path(__file__).with_name("mlp.yaml"))), overrides).read()
    device, axes = torch.device("cpu"), spec.strategy.axes(PROCESSES)
    world: Any = SoloWorld(device)
    if PROCESSES > 1:
        world = join_group(device, axes=axes, backend="gloo", local_rank=RANK, timeout=timedelta(seconds=60))
    run_dir = RunDir(setting.directory)
    log.setup(run_dir.rank_log(RANK), rank=RANK, console=RANK == 0)
    with open(setting.directory / f"terminal_{RANK}", "w") as terminal, contextlib.redirect_stderr(terminal):
        with open_session(spec, run_dir, world, StopRequest()) as session:
            began = time.process_time()
            session.outcome = train(session)
        taken = time.process_time() - began
    log.close()
    return taken, session.trainable.models["model"]


def accelerate(setting: Setting) -> Trained:
    """Accelerate: its own loop, as its documentation writes it."""
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin

    plugin = GradientAccumulationPlugin(num_steps=setting.accumulate, sync_with_dataloader=False)
    accelerator = Accelerator(
        cpu=True,
        mixed_precision="bf16" if setting.bf16 else "no",
        gradient_accumulation_plugin=plugin,
        log_with="tensorboard" if setting.board else None,
        project_dir=setting.directory,
    )
    if setting.board:
        accelerator.init_trackers("mlp")
    model, optimizer, loader = accelerator.prepare(setting.model, setting.optimizer(), setting.loader())
    step, began = 0, time.process_time()
    for batch in loader:
        with accelerator.accumulate(model):
            with accelerator.autocast():
                loss = mlp.compute_loss(model, batch)
            accelerator.backward(loss)
            if accelerator.sync_gradients and setting.clip is not None:
                accelerator.clip_grad_norm_(model.parameters(), setting.clip)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            step += 1
            if step % LOG_EVERY == 0:
                if setting.board:
                    accelerator.log({"train/loss": loss.item()}, step=step)
                _note(step, loss, setting, None)
    accelerator.end_training()
    return time.process_time() - began, accelerator.unwrap_model(model)


def fabric(setting: Setting) -> Trained:
    """Lightning Fabric: its own loop, as its documentation writes it."""
    from lightning.fabric import Fabric
    from lightning.fabric.loggers import TensorBoardLogger

    loggers = [TensorBoardLogger(setting.directory)] if setting.board else []
    one = Fabric(
        accelerator="cpu",
        devices=PROCESSES,
        strategy="ddp" if PROCESSES > 1 else "auto",
        precision="bf16-mixed" if setting.bf16 else "32-true",
        loggers=loggers,
    )
    one.launch()
    model, optimizer = one.setup(setting.model, setting.optimizer())
    loader = one.setup_dataloaders(setting.loader(divided=True), use_distributed_sampler=False)
    rounds, began = setting.accumulate, time.process_time()
    for number, batch in enumerate(loader, start=1):
        updates = number % rounds == 0
        with one.no_backward_sync(model, enabled=not updates):
            loss = mlp.compute_loss(model, batch)
            one.backward(loss / rounds if rounds > 1 else loss)
        if updates:
            if setting.clip is not None:
                one.clip_gradients(model, optimizer, max_norm=setting.clip)
            optimizer.step()
            optimizer.zero_grad()
            if number // rounds % LOG_EVERY == 0 and setting.board:
                one.log("train/loss", loss.item(), step=number // rounds)
            _note(number // rounds, loss, setting, None)
    return time.process_time() - began, setting.model


def lightning(setting: Setting) -> Trained:
    """Lightning's Trainer."""
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    class Module(LightningModule):  # type: ignore[misc]  # not installed where types are checked
        def __init__(self) -> None:
            super().__init__()
            self.model = setting.model

        def training_step(self, batch: Any, number: int) -> Any:
            loss = mlp.compute_loss(self.model, batch)
            self.log("train/loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return setting.optimizer()

    trainer = Trainer(
        accelerator="cpu",
        devices=PROCESSES,
        strategy="ddp" if PROCESSES > 1 else "auto",
        precision="bf16-mixed" if setting.bf16 else "32-true",
        max_steps=STEPS,
        accumulate_grad_batches=setting.accumulate,
        gradient_clip_val=setting.clip,
        logger=TensorBoardLogger(setting.directory) if setting.board else CSVLogger(setting.directory),
        log_every_n_steps=LOG_EVERY,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=setting.directory,
    )
    loader, module = setting.loader(divided=True), Module()
    began = time.process_time()
    trainer.fit(module, loader)
    return time.process_time() - began, setting.model


def transformers(setting: Setting) -> Trained:
    """The Trainer of transformers."""
    from transformers import Trainer, TrainingArguments

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = setting.model

        def forward(self, x: Any, y: Any) -> dict[str, Any]:
            return {"loss": mlp.compute_loss(self.model, (x, y))}

    class InOrder(Trainer):
        def _get_train_sampler(self, *args: Any) -> Any:
            return Order()

    arguments = TrainingArguments(
        output_dir=str(setting.directory),
        use_cpu=True,
        max_steps=STEPS,
        per_device_train_batch_size=setting.items,
        gradient_accumulation_steps=setting.accumulate,
        max_grad_norm=setting.clip or 0.0,
        bf16=setting.bf16,
        optim="sgd",
        learning_rate=0.01,
        weight_decay=0.0,
        lr_scheduler_type="constant",
        logging_steps=LOG_EVERY,
        report_to=["tensorboard"] if setting.board else [],
        save_strategy="no",
        disable_tqdm=True,
        accelerator_config={"split_batches": False, "dispatch_batches": False},
    )
    collator = lambda batch: {"x": batch[0], "y": batch[1]}  # noqa: E731
    whole = Whole()
    trainer = InOrder(whole, arguments, data_collator=collator, train_dataset=mlp.Points())
    with open(setting.directory / f"terminal_{RANK}", "w") as terminal, contextlib.redirect_stdout(terminal):
        began = time.process_time()
        trainer.train()
        return time.process_time() - began, setting.model


def ignite(setting: Setting) -> Trained:
    """Ignite: its engine around an update, as its documentation writes it."""
    import ignite.distributed as idist
    from ignite.engine import Engine, Events

    if PROCESSES > 1:
        idist.initialize("gloo")
    model = idist.auto_model(setting.model)
    optimizer, rounds, board = setting.optimizer(), setting.accumulate, _board(setting)

    def update(engine: Any, batch: Any) -> Any:
        model.train()
        updates = engine.state.iteration % rounds == 0
        with model.no_sync() if PROCESSES > 1 and not updates else contextlib.nullcontext():
            with torch.autocast("cpu", torch.bfloat16, enabled=setting.bf16):
                loss = mlp.compute_loss(model, batch)
            (loss / rounds if rounds > 1 else loss).backward()
        if updates:
            if setting.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), setting.clip)
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    trainer = Engine(update)

    @trainer.on(Events.ITERATION_COMPLETED(every=LOG_EVERY * rounds))  # type: ignore[untyped-decorator]
    def note(engine: Any) -> None:
        _note(engine.state.iteration // rounds, engine.state.output, setting, board)

    loader, began = setting.loader(divided=True), time.process_time()
    trainer.run(loader, max_epochs=1)
    return _ended(began, board), setting.model


CONTESTANTS: dict[str, tuple[str, Callable[[Setting], Trained]]] = {
    "by hand": ("torch", by_hand),
    "runner": ("runner", runner),
    "Accelerate": ("accelerate", accelerate),
    "Fabric": ("lightning", fabric),
    "Lightning": ("lightning", lightning),
    "Trainer": ("transformers", transformers),
    "Ignite": ("ignite", ignite),
}
"""Each with the module that it needs."""


def _board(setting: Setting) -> Any:
    if not setting.board:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(setting.directory))


def _note(step: int, loss: Any, setting: Setting, board: Any) -> None:
    if step % LOG_EVERY == 0 and RANK == 0:
        value = loss.item()
        with open(setting.directory / "metrics.jsonl", "a") as lines:
            lines.write(json.dumps({"step": step, "train/loss": value}) + "\n")
        if board is not None:
            board.add_scalar("train/loss", value, step)


def _ended(began: float, board: Any) -> float:
    if board is not None:
        board.close()
    return time.process_time() - began
