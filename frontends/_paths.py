"""Whether a model takes the same path through its Python code at several batch sizes.

`torch.export` assumes of a dynamic size that it is not 1, and says nothing where the
model asks. So the calls that the model makes are listed at a few sizes, 1 among them,
and compared; numbers among their arguments must lie on one line.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode, resolve_name

from boundgraph.frontends._python import ASSERTIONS

_SIZES = (1, 2, 3)


def path_problem(model: nn.Module, inputs: Sequence[Tensor], batched: Sequence[bool]) -> str | None:
    """Why the calls of the model are not the same at a batch size of 1, 2 and 3; None if they are.

    Args:
        model: the model; it runs on tensors without data.
        inputs: examples.
        batched: which of them have the batch as dimension 0.
    """
    lists = []
    for size in _SIZES:
        recorder = _Recorder()
        failure = _run(model, inputs, batched, size, recorder)
        if failure is not None:
            return f"the model fails at a batch size of {size}: {failure}"
        lists.append(recorder.calls)
    if len({len(calls) for calls in lists}) > 1 or not all(
        _on_a_line(*entries) for entries in zip(*lists, strict=True)
    ):
        return "the model takes another path for a batch of one"
    return None


def _run(
    model: nn.Module,
    inputs: Sequence[Tensor],
    batched: Sequence[bool],
    size: int,
    recorder: _Recorder,
) -> str | None:
    """Run the model at a batch size; what it raised, if it did."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        fake = [
            torch.empty((size, *item.shape[1:]), dtype=item.dtype, device=item.device)
            if dynamic
            else mode.from_tensor(item)
            for item, dynamic in zip(inputs, batched, strict=True)
        ]
        tensors: dict[str, Tensor] = {
            name: mode.from_tensor(tensor)
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
        }
        # Where warnings are errors, one would look like another path.
        with recorder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                torch.func.functional_call(model, tensors, tuple(fake))
            except Exception as error:
                # The user's model may raise anything; the caller says what it was.
                return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return None


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # The text of an assertion may hold sizes; whether it holds is checked by running it.
        numbers = [] if func in ASSERTIONS else _numbers((args, kwargs))
        self.calls.append((resolve_name(func) or str(func), *numbers))
        return func(*args, **kwargs)


def _numbers(value: Any) -> list[Any]:
    """Everything in a call's arguments but the tensors."""
    if isinstance(value, Tensor):
        return ["tensor"]
    if isinstance(value, dict):
        return [item for key, entry in value.items() for item in (key, *_numbers(entry))]
    if isinstance(value, list | tuple):
        return [item for entry in value for item in _numbers(entry)]
    return [value if isinstance(value, bool | int | float | str | None) else str(value)]


def _on_a_line(first: Any, second: Any, third: Any) -> bool:
    if not len(first) == len(second) == len(third):
        return False
    return all(
        c - b == b - a if type(a) is type(b) is type(c) is int else a == b == c
        for a, b, c in zip(first, second, third, strict=True)
    )
