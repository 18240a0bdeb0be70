"""What a strategy needs of one model: how it is built, its optimizer, and its hooks."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch.nn import Module

from runner.config import hooks
from runner.config.models import Hook
from runner.config.of_blocks import Compiled
from runner.config.run_spec import RunSpec
from runner.errors import HookError, ModelError
from runner.model.named import Call
from runner.model.shape import apply_compile, apply_recompute
from runner.model.unset_weights import build_unset
from runner.protocols import Builder, StepGraphs, UpdatesInGraph
from runner.protocols.state import MODEL
from runner.world.hook_ranks import HookRanks
from runner.world.seeds import seed_all

See = Callable[[Module, str], None]
"""Given a model as its hook returned it, and its name."""


def look_at_nothing(model: Module, name: str) -> None:
    """Look at a model, and do nothing."""


def builder_of(spec: RunSpec, ranks: HookRanks, *, see: See = look_at_nothing, restores: bool = False) -> Builder:
    """The functions and options from which a strategy builds a run's only model and its optimizer.

    Args:
        ranks: given to hooks that ask for them.
        see: called with the first model that the hook returns, as it returns it.
        restores: weights are loaded before anything else is done with the model.
    """
    assert spec.loss is not None
    assert spec.model is not None
    # A callback that is not in the checkpoint begins with what the model is now. A hook that exchanges something with
    # other ranks may not be called again by one of them.
    is_unset = restores and not spec.callback and not hooks.asks(spec.model, spec.import_roots)
    return Builder(
        build_model=partial(call_model, spec, ranks, _first(lambda model: see(model, MODEL))),
        recompute=partial(apply_recompute, spec=spec),
        compile=partial(apply_compile, spec=spec),
        build_optimizer=partial(spec.optimizer.build, items=spec.batch.items),
        loss=hook_call("loss", spec.loss, spec, ranks),
        precision=spec.precision,
        clip=spec.clip,
        step_graphs=_step_graphs(spec),
        build_unset=build_unset if is_unset else None,
    )


def _step_graphs(spec: RunSpec) -> StepGraphs | None:
    """How whole steps are compiled, if the spec asks for it."""
    if spec.compile.what is not Compiled.STEP:
        return None
    from runner.model.compiling import compile_function

    assert isinstance(spec.optimizer, UpdatesInGraph)
    return StepGraphs(partial(compile_function, part=spec.compile), spec.optimizer.graph_update())


def hook_call(key: str, hook: Hook, spec: RunSpec, ranks: HookRanks) -> Call:
    """A hook that is called with the model, or with those of several that it asks for by name.

    Args:
        key: of the hook in a recipe: loss or predict.
    """
    call = hooks.resolve(hook, spec.import_roots)
    if spec.models:
        return _call_by_name(call, hook, spec, ranks)
    if not hooks.asks(hook, spec.import_roots, positional=hooks.POSITIONAL[key]):
        return lambda model, batch, items: call(model, batch)
    counting, filler = ranks.all, ranks.filler  # communicators are made for hooks that ask for them only
    return lambda model, batch, items: call(model, batch, world=counting if items else filler)


def _call_by_name(call: Callable[..., Any], hook: Hook, spec: RunSpec, ranks: HookRanks) -> Call:
    offered = hooks.offered_by_name(spec.models)
    asked = [name for name in offered if hooks.asks(hook, spec.import_roots, name)]
    counting, filler = (ranks.all, ranks.filler) if hooks.WORLD in asked else (None, None)

    def by_name(models: Mapping[str, Module], batch: Any, items: int) -> Any:
        given = {**models, hooks.BATCH: batch, hooks.WORLD: counting if items else filler}
        return call(**{name: given[name] for name in asked})

    return by_name


def _first(see: Callable[[Module], None]) -> Callable[[Module], None]:
    """Look at the first model only: a strategy may build it more than once."""
    left = [see]

    def look(model: Module) -> None:
        if left:
            left.pop()(model)

    return look


def call_model(spec: RunSpec, ranks: HookRanks, see: Callable[[Module], None]) -> Module:
    """Call the model hook with the same seed on every rank, so that initial weights are equal by construction."""
    hook = spec.model
    assert hook is not None
    offered = {hooks.WORLD: ranks.all} if hooks.asks(hook, spec.import_roots) else {}
    seed_all(spec.run.seed)
    model = hooks.resolve(hook, spec.import_roots)(**offered)
    if not isinstance(model, Module):
        raise HookError(f"{hook.target} returned a {type(model).__name__}, but must return a torch.nn.Module.")
    if not any(True for _ in model.parameters()):
        raise ModelError(f"{hook.target} returned a model without parameters: there is nothing to train.")
    see(model)
    spec.precision.convert(model, spec.hardware)
    return model
