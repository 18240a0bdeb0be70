"""Checks the outputs of every module and their gradients, in one forward and backward."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self, final

from torch import Tensor
from torch.nn import Module
from torch.utils.hooks import RemovableHandle

from runner.model.local_part import Awaited


class Origin(NamedTuple):
    """Where a non-finite value arose."""

    module: str | None
    """`name (class)` of a module; None = outside all modules."""
    how: str
    """A description, as part of a sentence."""


class _Seen(NamedTuple):
    module: str
    finite: bool
    takes_finite: bool = True


@final
class Watch:
    """Records, in order, which modules return finite tensors and which gradients of theirs are finite."""

    def __init__(self, models: Mapping[str, Module]) -> None:
        self._modules = [(_called(name, module), module) for name, module in _named_modules(models)]
        self._handles: list[RemovableHandle] = []
        self._forward: list[_Seen] = []
        self._backward: list[_Seen] = []
        self._hooked: set[int] = set()
        self._hooked_tensors: list[Tensor] = []  # alive, so that no other tensor gets the id of one with a hook

    def __enter__(self) -> Self:
        for called, module in self._modules:
            self._handles.append(module.register_forward_hook(self._forward_hook(called), with_kwargs=True))
            for key, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad:
                    self._watch_gradient(parameter, f"{called}, in the gradient of its {key}")
        return self

    def __exit__(self, *exc_info: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._hooked_tensors.clear()

    def in_forward(self, batch: Any) -> Origin:
        """The origin of a non-finite loss."""
        if not _all_finite(batch):
            return Origin(None, "the batch itself contains nan or inf")
        for module, finite, takes_finite in self._forward:
            if not finite:
                known = "its weights are not finite" if not self._weights_finite(module) else "its input is finite"
                return Origin(
                    module, f"the first module to return nan or inf is {module}" + f"; {known}" * takes_finite
                )
        return Origin(None, "every module returned finite values: it arose in the loss hook")

    def in_backward(self) -> Origin:
        """The origin of a non-finite gradient of a finite loss."""
        before = None
        for module, finite, _ in self._backward:
            if finite:
                before = module
            elif before is None:
                return Origin(module, f"it arose in the backward pass between the loss hook and {module}")
            else:
                return Origin(before, f"it arose in the backward pass from the output of {before} to {module}")
        return Origin(None, "it did not arise on this rank")

    def _forward_hook(self, called: str) -> Any:
        def check(module: Module, args: Any, kwargs: Any, output: Any) -> None:
            self._forward.append(_Seen(called, _all_finite(output), _all_finite((args, kwargs))))
            for tensor in _tensors(output):
                if (
                    tensor.requires_grad and id(tensor) not in self._hooked
                ):  # a parent may return its last child's output
                    self._hooked.add(id(tensor))
                    self._hooked_tensors.append(tensor)
                    self._watch_gradient(tensor, called)

        return check

    def _watch_gradient(self, tensor: Tensor, called: str) -> None:
        def note(grad: Tensor) -> None:
            self._backward.append(_Seen(called, _all_finite(grad)))

        self._handles.append(tensor.register_hook(note))  # type: ignore[no-untyped-call]

    def _weights_finite(self, called: str) -> bool:
        return all(_all_finite(parameter) for parameter in dict(self._modules)[called].parameters())


def _named_modules(models: Mapping[str, Module]) -> Iterator[tuple[str, Module]]:
    """All modules by name, prefixed by the model's name if there are several models."""
    for model, root in models.items():
        for name, module in root.named_modules():
            yield (name if len(models) == 1 else ".".join(filter(None, (model, name))), module)


def _called(name: str, module: Module) -> str:
    return f"{name or 'the model'} ({type(module).__name__})"


def _all_finite(value: Any) -> bool:
    return all(bool(tensor.detach().isfinite().all()) for tensor in _tensors(value) if tensor.is_floating_point())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if not isinstance(value, Awaited) or value.arrived is not None:
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
