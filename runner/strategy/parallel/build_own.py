"""Builds a model of which this rank keeps a part, with the weights of one process and memory for that part only.

The model hook runs twice. The first time, on torch's meta device, shows which weights there are. The second time, those
of other ranks go to the meta device as soon as a module gets them. Functions that draw random numbers for these do so
into a tensor that is freed at once, so that all others get the numbers that they would get in one process.
"""

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from runner.errors import ModelError, RunnerError

HOST = torch.device("cpu")


def build_own(build_model: Callable[[], Module], own: Callable[[Module], Container[str]]) -> Module:
    """Build a model; the parameters that are not this rank's are on the meta device.

    Args:
        build_model: seeds the random numbers, and returns the model on the host.
        own: the names of this rank's parameters, given the model without values; every name of a shared one.

    Raises:
        ModelError: the model cannot be built in part.
    """
    try:
        registered: list[Parameter] = []
        with torch.device("meta"), _registering(lambda _, parameter: registered.append(parameter)):
            outline = build_model()
        names = own(outline)
        named = list(outline.named_parameters(remove_duplicate=False))
        others = {id(parameter) for _, parameter in named} - {id(one) for name, one in named if name in names}

        def place(number: int, parameter: Parameter) -> Parameter | None:
            # What is no part of the model in the end may be what its weights are copied from.
            is_other = number < len(registered) and id(registered[number]) in others
            return _on_meta(parameter) if is_other and not _is_meta(parameter) else None

        with _registering(place), _LooksLikeHost(), _DrawsForOthers():
            model = build_model()
    except RunnerError:
        raise
    except Exception as error:  # a user's function may raise anything on the meta device
        rule = "strategy.build_own_stages=true: the model cannot be built without the weights of other stages"
        raise ModelError(f"{rule} ({type(error).__name__}: {error}). Use false.") from error
    lost = [name for name, parameter in model.named_parameters() if name in names and parameter.is_meta]
    if lost:
        rule = f"strategy.build_own_stages=true: the values of {lost[0]} depend on weights of other stages"
        raise ModelError(f"{rule}. Use false.")
    return model


@contextmanager
def _registering(see: Callable[[int, Parameter], Parameter | None]) -> Iterator[None]:
    """Inside the block, `see` gets the number of each parameter that a module gets, and may return another one."""
    count = 0

    def hook(module: Module, name: str, parameter: Any) -> Any:
        nonlocal count
        count += 1
        return see(count - 1, parameter)

    handle = register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _on_meta(parameter: Parameter) -> Parameter:
    with torch._C.DisableTorchFunction():
        return Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)


def _is_meta(tensor: Tensor) -> bool:
    with torch._C.DisableTorchFunction():
        return tensor.is_meta


@final
class _LooksLikeHost(TorchFunctionMode):
    """Lets a model that asks see all its weights on the host.

    If it left out what is on the meta device, as some libraries do, other weights would get other random numbers.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function."""
        name, owner = getattr(func, "__name__", ""), getattr(func, "__self__", None)
        if name == "__get__" and owner is Tensor.is_meta:
            return False
        if name == "__get__" and owner is Tensor.device and _is_meta(args[0]):
            return HOST
        return func(*args, **(kwargs or {}))


@final
class _DrawsForOthers(TorchDispatchMode):
    """Draws the random numbers of tensors on the meta device, all into the same memory.

    What was allocated and freed between weights that stay would leave gaps, which the process keeps.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._memory = torch.empty(0, dtype=torch.uint8)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and any(map(_is_meta_leaf, tree_leaves((args, kwargs)))):
            drawn = [self._zeros(one) if _is_meta_leaf(one) else one for one in args[:1]]
            func(*drawn, *tree_map(_on_host, args[1:]), **tree_map(_on_host, kwargs))
            kwargs = {name: value for name, value in kwargs.items() if name != "generator"}
        return func(*args, **kwargs)

    def _zeros(self, meta: Tensor) -> Tensor:
        """As `_on_host`, in the memory for what is drawn."""
        last = sum((size - 1) * stride for size, stride in zip(meta.shape, meta.stride(), strict=True))
        num_bytes = meta.element_size() * (last + 1 if meta.numel() else 0)
        if self._memory.nbytes < num_bytes:
            self._memory = torch.empty(num_bytes, dtype=torch.uint8)
        return self._memory[:num_bytes].view(meta.dtype).as_strided(meta.shape, meta.stride()).zero_()


def _is_meta_leaf(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and _is_meta(leaf)


def _on_host(leaf: Any) -> Any:
    """Zeros in place of a tensor without storage, in the same order in memory: it decides on the order of the draws."""
    if not _is_meta_leaf(leaf):
        return leaf
    return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=HOST).zero_()
