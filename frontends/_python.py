"""Captured calls on numbers, sizes and metadata, which become no ops.

With a dynamic batch such a call runs once for each probed batch size, and the results
must lie on one line. What a probe cannot decide for every batch size is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from boundgraph.frontends import _nests as nests
from boundgraph.ir.types import Dim
from boundgraph.ops._infer import fit

SYMBOL = "b"

aten = torch.ops.aten

# Checks of the user's or of torch.export: they compute nothing.
ASSERTIONS = {
    torch._assert,
    torch._check,
    torch._assert_async,
    aten._assert_async.default,
    aten._assert_async.msg,
    aten._assert_scalar.default,
    aten._assert_tensor_metadata.default,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
}

# Metadata that is linear in the batch size, or does not depend on it.
_METADATA = {
    *(f"Tensor.{name}" for name in ("size", "shape", "dim", "ndim", "ndimension", "numel")),
    *(f"Tensor.{name}" for name in ("nelement", "dtype", "device", "layout", "is_cuda")),
    *(f"Tensor.{name}" for name in ("is_floating_point", "is_complex", "element_size", "type")),
    *(f"Tensor.{name}" for name in ("requires_grad", "is_sparse", "itemsize", "get_device")),
    torch.is_floating_point,
    torch.is_complex,
    torch.numel,
    torch.is_tensor,
    aten.sym_size.int,
    aten.sym_numel.default,
    len,
    isinstance,
    type,
}
_LINEAR = {
    operator.add,
    operator.iadd,
    operator.sub,
    operator.isub,
    operator.mul,
    operator.imul,
    operator.neg,
    operator.pos,
    operator.floordiv,
    operator.ifloordiv,
    operator.getitem,
    tuple,
    list,
    torch.Size,
}
_COMPARISONS: dict[Any, Callable[[int], bool]] = {
    operator.eq: lambda sign: sign == 0,
    operator.ne: lambda sign: sign != 0,
    operator.lt: lambda sign: sign < 0,
    operator.le: lambda sign: sign <= 0,
    operator.gt: lambda sign: sign > 0,
    operator.ge: lambda sign: sign >= 0,
}


class NotDynamic(Exception):  # noqa: N818 - answered by importing with static shapes
    """The model does not treat all batch sizes alike, as far as can be told."""


def on_sizes(target: Any, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """A call without tensors, on numbers and `Dim`s.

    Raises:
        NotDynamic: when the result is not linear in the symbol, or a comparison is not
            decided for every batch size.
    """
    if not nests.has(Dim, args, kwargs):
        return fn(*args, **kwargs)
    if target in _COMPARISONS:
        return _COMPARISONS[target](_sign(*args))
    if target not in _LINEAR:
        name = getattr(target, "__name__", target)
        raise NotDynamic(f"`{name}` of the batch size is not linear")
    if target in (torch.Size, tuple, list):
        return tuple(*args)
    try:
        return fn(*args, **kwargs)
    except TypeError as error:
        raise NotDynamic(f"a size is not linear in the batch size: {error}") from error


def _sign(left: Any, right: Any) -> int:
    """The sign of `left − right`, if it is one for every batch size from 1 on."""
    try:
        difference = left - right
    except TypeError as error:
        raise NotDynamic(f"cannot compare {left} and {right}") from error
    if not isinstance(difference, Dim):
        return int(difference > 0) - int(difference < 0)
    first = difference.coeff + difference.offset
    if difference.coeff > 0 and first > 0:
        return 1
    if difference.coeff < 0 and first < 0:
        return -1
    raise NotDynamic(f"whether {left} and {right} are equal depends on the batch size")


def drops_batch(args: Any, kwargs: Any) -> bool:
    """Whether a `squeeze` may drop a dynamic dimension, when its size happens to be 1."""
    shape = args[0].type.shape
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    if dims is None:
        return nests.has(Dim, shape)
    chosen = dims if isinstance(dims, list | tuple) else (dims,)
    return any(isinstance(shape[dim], Dim) for dim in chosen)


def metadata(key: Any, results: Sequence[Any], probes: Sequence[int]) -> Any:
    """What a call on tensors says about them, from its results at all probes.

    Raises:
        NotDynamic: when that cannot be told for every batch size.
    """
    if all(result is None for result in results):
        return None
    if len(results) > 1 and key not in _METADATA:
        name = getattr(key, "__name__", key)
        raise NotDynamic(f"the result of `{name}` may depend on the batch size")
    return unify(results, probes)


def unify(results: Sequence[Any], probes: Sequence[int]) -> Any:
    """One nest of values out of the same nest at several batch sizes; tensors are kept."""
    flat = [pytree.tree_flatten(_as_tuple(result)) for result in results]
    if any(spec != flat[0][1] for _, spec in flat):
        raise NotDynamic("the number of results depends on the batch size")
    leaves = [_unify_leaf(leaf, probes) for leaf in zip(*(item for item, _ in flat), strict=True)]
    return pytree.tree_unflatten(leaves, flat[0][1])


def _as_tuple(result: Any) -> Any:
    return tuple(result) if isinstance(result, torch.Size) else result


def _unify_leaf(values: tuple[Any, ...], probes: Sequence[int]) -> Any:
    first = values[0]
    if isinstance(first, Tensor) or len(values) == 1:
        return first
    if all(type(value) is int for value in values):
        try:
            return fit(SYMBOL, values, probes)
        except TypeError as error:
            raise NotDynamic(str(error)) from error
    if any(type(value) is not type(first) or value != first for value in values):
        raise NotDynamic("a number depends on the batch size")
    return first
