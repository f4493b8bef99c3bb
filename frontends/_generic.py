"""Calls that no lowering covers: run as they are, or stand-ins that say why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from boundgraph.errors import Diagnostic
from boundgraph.frontends import _nests as nests
from boundgraph.frontends import _python as python
from boundgraph.frontends import _targets as targets
from boundgraph.frontends._emitter import Emitter
from boundgraph.ir.program import Value
from boundgraph.ir.types import Dim
from boundgraph.ops._dtypes import from_torch, to_torch
from boundgraph.ops.constant import EncodingError, encode
from boundgraph.source import SourceSpan


class NotImported(Exception):  # noqa: N818 - the caller decides what it means
    """This graph cannot be imported; another frontend's graph of the model might."""

    def __init__(self, diagnostic: Diagnostic) -> None:
        super().__init__(str(diagnostic))
        self.diagnostic = diagnostic


def per_result(
    shadows: Sequence[Any],
    probes: Sequence[int],
    make: Callable[[tuple[int, ...], list[Tensor]], Any],
    path: tuple[int, ...] = (),
) -> Any:
    """The nest of a call's results, with something made for each tensor in it.

    Args:
        shadows: the result on meta tensors, at each probe.
        probes: the batch sizes.
        make: from the path to a tensor, and that tensor at each probe.
    """
    first = shadows[0]
    if isinstance(first, Tensor):
        return make(path, list(shadows))
    if isinstance(first, tuple | list) and nests.has(Tensor, first):
        items = [
            per_result([shadow[i] for shadow in shadows], probes, make, (*path, i))
            for i in range(len(first))
        ]
        return nests.rebuild(first, items)
    if nests.has(Tensor, first):
        raise NotImported(Diagnostic(f"a call returns {type(first).__name__} of tensors"))
    return python.unify(shadows, probes)


def call(
    emitter: Emitter,
    key: Any,
    args: Any,
    kwargs: Any,
    shadows: Sequence[Any],
    probes: Sequence[int],
    *,
    in_place: bool,
) -> Any:
    """Emit `call` nodes that run a torch function as it is, one for each result.

    Raises:
        NotImported: when the function, or one of its arguments, has no text.
    """
    operands: list[Value] = []
    try:
        attrs = {
            "target": targets.dotted(key, functional=in_place),
            "args": encode(tuple(args), operands),
            "kwargs": tuple((name, encode(value, operands)) for name, value in kwargs.items()),
        }
    except (EncodingError, TypeError) as error:
        raise NotImported(Diagnostic(str(error), emitter.span)) from error
    return per_result(
        shadows, probes, lambda path, _: emitter.emit("call", *operands, **attrs, output=path)
    )


def stand_in(
    emitter: Emitter,
    values: Sequence[Value],
    shadows: Sequence[Any],
    probes: Sequence[int],
    *,
    message: str,
    help: str | None,
) -> Any:
    """`unsupported` nodes of the types that the call would have given."""

    def make(_: tuple[int, ...], tensors: list[Tensor]) -> Value:
        return emitter.emit(
            "unsupported",
            *dict.fromkeys(values),
            message=message,
            help=help,
            dtype=from_torch(tensors[0].dtype),
            shape=python.unify([tuple(tensor.shape) for tensor in tensors], probes),
        )

    return per_result(shadows, probes, make)


def factory(
    fn: Callable[..., Any], args: Any, kwargs: Any, device: torch.device, span: SourceSpan | None
) -> Tensor:
    """The tensor that a call without tensor operands makes, e.g. `torch.arange(10)`.

    Raises:
        NotDynamic: when its size is the batch size.
        NotImported: when it makes anything but one tensor.
    """
    if nests.has(Dim, args, kwargs):
        raise python.NotDynamic("a tensor is made whose values depend on the batch size")
    result = fn(*_on_device(args, device), **_on_device(kwargs, device))
    if not isinstance(result, Tensor):
        raise NotImported(Diagnostic(f"a call returns {type(result).__name__} of tensors", span))
    return result


def _on_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.device):
        # The importer answers `x.device` with meta, for it does not know where x will be.
        return device if value.type == "meta" else value
    if isinstance(value, dict):
        return {name: _on_device(item, device) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_on_device(item, device) for item in value)
    return value


def impurity(name: str, fn: Callable[..., Any], args: Any, kwargs: Any) -> str | None:
    """Why a call on meta tensors must not be kept as it is; None if it computes only."""
    with targets.Watch() as watch:
        fn(*args, **kwargs)
    if watch.random:
        return f"`{name}` draws random numbers, so no bound holds for its result"
    if watch.statistics:
        return f"`{name}` may update running statistics, which a bound must not"
    return None


def to_meta(key: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Arguments that keep a call on meta tensors wherever the user runs it."""
    args, kwargs = _devices_to_meta(args), _devices_to_meta(kwargs)
    if isinstance(kwargs.get("device"), str | int):
        kwargs["device"] = torch.device("meta")
    name = targets.base_name(key)
    if name == "to" and len(args) > 1 and isinstance(args[1], str):
        args = (args[0], torch.device("meta"), *args[2:])
    if name in ("cpu", "cuda"):
        args = args[:1]
    return args, kwargs


def _devices_to_meta(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("meta")
    if isinstance(value, dict):
        return {name: _devices_to_meta(item) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_devices_to_meta(item) for item in value)
    return value


def without_data(tensor: Tensor) -> Tensor:
    """A meta tensor of the same shape, strides and dtype."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


# Meta kernels let these through with mixed dtypes, and the kernels that compute do not.
_CONVOLUTIONS = tuple(f"conv{kind}{dims}d" for kind in ("", "_transpose") for dims in (1, 2, 3))
_NORMALIZATIONS = ("layer_norm", "group_norm", "batch_norm")
_ONE_DTYPE = frozenset(("linear", "matmul", "mm", "addmm", *_CONVOLUTIONS, *_NORMALIZATIONS))


def mixed_dtypes(name: str, operands: Sequence[Value]) -> bool:
    """Whether a call that does not promote dtypes has operands of several."""
    floats = {v.type.dtype for v in operands if to_torch(v.type.dtype).is_floating_point}
    return len(floats) > 1 and name.rpartition(".")[2] in _ONE_DTYPE
