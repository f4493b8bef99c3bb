"""Layer, group, instance and RMS normalisation, norms and standard deviations."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from boundgraph.ir.program import Value
from boundgraph.ir.types import numel
from boundgraph.ops._compose import use
from boundgraph.ops._dtypes import to_torch
from boundgraph.ops._spec import Lowering, lowers
from boundgraph.ops.views import reshape_to

aten = torch.ops.aten
Dims = tuple[int, ...]


def _count(b: Lowering, x: Value, dims: Dims, what: str) -> int:
    """Number of elements that are taken together."""
    count = numel(tuple(b.shape(x)[dim] for dim in dims))
    if not isinstance(count, int):
        return b.reject(f"{what} over the batch dimension mixes samples")  # type: ignore[no-any-return]
    return count


def _standardized(b: Lowering, x: Value, dims: Dims, eps: float) -> Value:
    count = _count(b, x, dims, "normalisation")
    centered = b.emit("center", x, dims=dims, count=count)
    return b.emit(
        "scale_to_unit", centered, dims=dims, count=count, eps=eps, floor=0.0, centered=True
    )


def _scaled(b: Lowering, x: Value, weight: Value | None, bias: Value | None) -> Value:
    for op, factor in (("mul", weight), ("add", bias)):
        if factor is not None:
            x = b.emit(op, *b.broadcast(x, factor))
    return x


@lowers(F.layer_norm, torch.layer_norm, aten.layer_norm.default)
def _(
    b: Lowering,
    input: Value,
    normalized_shape: Any,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Value:
    rank = len(b.shape(input))
    dims = tuple(range(rank - len(tuple(normalized_shape)), rank))
    return _scaled(b, _standardized(b, input, dims, eps), weight, bias)


@lowers(F.rms_norm, torch.rms_norm, aten.rms_norm.default)
def _(
    b: Lowering,
    input: Value,
    normalized_shape: Any,
    weight: Value | None = None,
    eps: float | None = None,
) -> Value:
    rank = len(b.shape(input))
    dims = tuple(range(rank - len(tuple(normalized_shape)), rank))
    small = torch.finfo(to_torch(input.type.dtype)).eps if eps is None else eps
    count = _count(b, input, dims, "normalisation")
    unit = b.emit(
        "scale_to_unit", input, dims=dims, count=count, eps=small, floor=0.0, centered=False
    )
    return _scaled(b, unit, weight, None)


def _grouped(
    b: Lowering, x: Value, groups: int, weight: Value | None, bias: Value | None, eps: float
) -> Value:
    shape = tuple(b.shape(x))
    batch, channels, *spatial = shape
    apart = reshape_to(b, x, (batch, groups, channels // groups, *spatial))  # type: ignore[operator]
    unit = _standardized(b, apart, tuple(range(2, len(shape) + 1)), eps)
    per_channel = [
        None if p is None else b.emit("reshape", p, shape=(channels, *(1,) * len(spatial)))
        for p in (weight, bias)
    ]
    return _scaled(b, reshape_to(b, unit, shape), *per_channel)


@lowers(F.group_norm, torch.group_norm, aten.group_norm.default)
def _(
    b: Lowering,
    input: Value,
    num_groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Value:
    return _grouped(b, input, num_groups, weight, bias, eps)


def _instance(
    b: Lowering, x: Value, mean: Any, var: Any, weight: Any, bias: Any, own: bool, eps: float
) -> Value:
    if not own:
        scale = () if weight is None else (weight, bias)
        return b.emit("batch_norm", x, mean, var, *scale, eps=eps)
    if mean is not None:
        return b.reject(
            "instance_norm in training mode updates its running statistics",
            help="call model.eval(), or track_running_stats=False",
        )
    channels = b.shape(x)[1]
    assert isinstance(channels, int)
    return _grouped(b, x, channels, weight, bias, eps)


@lowers(F.instance_norm)
def _(
    b: Lowering,
    input: Value,
    running_mean: Value | None = None,
    running_var: Value | None = None,
    weight: Value | None = None,
    bias: Value | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Value:
    return _instance(b, input, running_mean, running_var, weight, bias, use_input_stats, eps)


@lowers(torch.instance_norm, aten.instance_norm.default)
def _(
    b: Lowering,
    input: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Value:
    return _instance(b, input, running_mean, running_var, weight, bias, use_input_stats, eps)


def _dims(b: Lowering, x: Value, dim: Any) -> Dims:
    rank = len(b.shape(x))
    if dim in (None, (), []):
        return tuple(range(rank))
    return tuple(sorted(b.dim(x, d) for d in (dim if isinstance(dim, tuple | list) else (dim,))))


def _norm(b: Lowering, x: Value, p: Any, dim: Any, keepdim: bool, dtype: Any = None) -> Value:
    power = {None: 2.0, "fro": 2.0}.get(p, p)
    if dtype is not None or not isinstance(power, int | float) or power < 1:
        return b.reject(
            f"the norm of order {p!r} has no bound rule", help="use a p-norm with p of 1 or more"
        )
    dims = _dims(b, x, dim)
    count = _count(b, x, dims, "a norm")
    return b.emit("vector_norm", x, p=float(power), dims=dims, count=count, keepdim=keepdim)


@lowers(torch.norm, "Tensor.norm", aten.norm.Scalar, aten.norm.ScalarOpt_dim)
def _(
    b: Lowering,
    input: Value,
    p: Any = "fro",
    dim: Any = None,
    keepdim: bool = False,
    out: Any = None,
    dtype: Any = None,
) -> Value:
    return _norm(b, input, p, dim, keepdim, dtype)


@lowers(torch.linalg.vector_norm, aten.linalg_vector_norm.default)
def _(
    b: Lowering,
    x: Value,
    ord: Any = 2,
    dim: Any = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Value:
    return _norm(b, x, ord, dim, keepdim, dtype)


@lowers(torch.linalg.norm, aten.linalg_norm.default)
def _(
    b: Lowering,
    A: Value,  # noqa: N803
    ord: Any = None,
    dim: Any = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Value:
    vectors = isinstance(dim, int) or (dim is None and len(b.shape(A)) == 1)
    if ord is not None and not vectors:
        return b.reject("a matrix norm has no bound rule", help="use torch.linalg.vector_norm")
    return _norm(b, A, ord, dim, keepdim, dtype)


@lowers(torch.linalg.matrix_norm, aten.linalg_matrix_norm.default)
@lowers(aten.linalg_matrix_norm.str_ord)
def _(
    b: Lowering,
    A: Value,  # noqa: N803
    ord: Any = "fro",
    dim: Any = (-2, -1),
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Value:
    if ord != "fro":
        return b.reject("only the Frobenius norm of a matrix has a bound rule")
    return _norm(b, A, None, dim, keepdim, dtype)


@lowers(F.local_response_norm)
def _(
    b: Lowering,
    input: Value,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
) -> Value:
    """x · (k + α·mean of the squares of neighbouring channels)^(−β)."""
    if k <= 0 or alpha < 0:
        return b.reject("local_response_norm needs k > 0 and alpha >= 0 to have a bound")
    rank, channels = len(b.shape(input)), b.shape(input)[1]
    assert isinstance(channels, int)
    with torch.device("cpu"):
        at = torch.arange(channels)
        apart = at[None, :] - at[:, None]
        near = (apart >= -(size // 2)) & (apart <= (size - 1) // 2)
        window = near.to(to_torch(input.type.dtype)) / size
    order, back = (0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1))
    square = b.emit("square", input)
    moved = b.emit("permute", square, dims=order) if rank > 2 else square
    mean = b.emit("linear", moved, b.tensor(window))
    mean = b.emit("permute", mean, dims=back) if rank > 2 else mean
    # A mean of squares, which rounding may put below 0.
    mean = use(b, F.relu, mean)
    total = b.emit("add_scalar", b.emit("mul_scalar", mean, other=alpha), other=float(k))
    return use(b, torch.mul, input, use(b, torch.pow, total, -beta))  # type: ignore[no-any-return]


@lowers(F.normalize)
def _(
    b: Lowering, input: Value, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Any = None
) -> Value:
    dims = _dims(b, input, dim)
    if p != 2:
        # No element is larger than the norm of all.
        length = use(b, torch.clamp, _norm(b, input, p, dim, True), min=eps)
        return use(b, torch.clamp, use(b, torch.div, input, length), -1.0, 1.0)  # type: ignore[no-any-return]
    count = _count(b, input, dims, "normalisation")
    # x / max(‖x‖, ε) is x / max(rms(x), ε/√n) / √n.
    root = math.sqrt(count)
    unit = b.emit(
        "scale_to_unit", input, dims=dims, count=count, eps=0.0, floor=eps / root, centered=False
    )
    return b.emit("mul_scalar", unit, other=1.0 / root)


def _deviation(b: Lowering, x: Value, dim: Any, correction: Any, keepdim: bool) -> Any:
    """The standard deviation, as the norm of what is left without the mean."""
    dims = _dims(b, x, dim)
    count = _count(b, x, dims, "a variance")
    if count <= correction:
        return b.reject("the variance of a single element is undefined")
    centered = b.emit("center", x, dims=dims, count=count)
    norm = b.emit("vector_norm", centered, p=2.0, dims=dims, count=count, keepdim=keepdim)
    return b.emit("mul_scalar", norm, other=1.0 / math.sqrt(count - correction))


def _lower_spread(variance: bool, with_mean: bool) -> Any:
    def lower(
        b: Lowering,
        input: Value,
        dim: Any = None,
        unbiased: Any = None,
        keepdim: bool = False,
        *,
        correction: Any = None,
    ) -> Any:
        if isinstance(dim, bool):
            dim, unbiased = None, dim
        if correction is None:
            correction = 1 if unbiased in (None, True) else 0
        deviation = _deviation(b, input, dim, correction, keepdim)
        spread = b.emit("mul", deviation, deviation) if variance else deviation
        if not with_mean:
            return spread
        return spread, b.emit("mean", input, dims=_dims(b, input, dim), keepdim=keepdim)

    return lower


for _name, _variance, _mean in (
    ("std", False, False),
    ("var", True, False),
    ("std_mean", False, True),
    ("var_mean", True, True),
):
    _packet = getattr(aten, _name)
    _overloads = (_packet.default, _packet.dim, _packet.correction)
    lowers(getattr(torch, _name), *_overloads)(_lower_spread(_variance, _mean))
    if not _mean:
        lowers(f"Tensor.{_name}")(_lower_spread(_variance, _mean))
