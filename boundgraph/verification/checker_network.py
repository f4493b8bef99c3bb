"""What the ops of a certificate mean: its program as affine maps, curves and maxima.

Part of the checker (see checker.py): numpy and the standard library only. An op that is not
here is refused. Shapes are derived here from the shape of the input; those of the file are not
read. Over the real numbers `cast` and `detach` are the identity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

if __package__:
    from boundgraph.verification.checker_maps import Conv, Dense, Gather
    from boundgraph.verification.checker_numbers import Arithmetic, Array, require
else:  # run as a script
    from checker_maps import Conv, Dense, Gather  # type: ignore[import-not-found,no-redef]
    from checker_numbers import (  # type: ignore[import-not-found,no-redef]
        Arithmetic,
        Array,
        require,
    )


@dataclass
class Step:
    """A value: an input, `Σ parts + bias`, a relaxed function of one value, or a maximum."""

    shape: tuple[int, ...]
    parts: list[tuple[int, Any]] = field(default_factory=list)
    bias: tuple[Array, Array] | None = None
    curve: str | None = None
    kink: Any = 0
    windows: Array = None
    source: int = -1
    name: str = ""

    @property
    def size(self) -> int:
        return math.prod(self.shape)


# --- what the ops mean -------------------------------------------------------------------------


def _taps(size: int, count: int, kernel: int, stride: int, pad: int, dilation: int) -> Array:
    """`[count, kernel]` positions along one dimension, −1 in the padding."""
    require(stride > 0 and count > 0 and kernel > 0, "a stride or size of 0")
    at = np.arange(count)[:, None] * stride - pad + np.arange(kernel)[None] * dilation
    return np.where((at >= 0) & (at < size), at, -1)


def _plane(positions: list[Array], sizes: tuple[int, ...]) -> Array:
    """Positions along several dimensions to flat ones: `[all counts, all kernels]`."""
    flat = np.zeros((1, 1), dtype=np.int64)
    for at, size in zip(positions, sizes, strict=True):
        joined = flat[:, None, :, None] * size + at[None, :, None, :]
        joined = np.where((flat[:, None, :, None] < 0) | (at[None, :, None, :] < 0), -1, joined)
        flat = joined.reshape(len(flat) * len(at), -1)
    return flat


def _per_channel(index: Array, channels: int, plane: int) -> Array:
    lifted = np.arange(channels)[:, None, None] * plane + index[None]
    return np.where(index[None] < 0, -1, lifted).reshape(-1, index.shape[1])


def _sizes(spatial: int, given: Any) -> tuple[int, ...]:
    """One number for all spatial dimensions, or one each."""
    values = tuple(given) if isinstance(given, list | tuple) else (given,) * spatial
    require(
        len(values) == spatial and all(type(v) is int and v >= 0 for v in values),
        f"{given!r} is not a size for each of {spatial} dimensions",
    )
    return values


def _move_pad(x: Array, pads: list[int], mode: str, value: float) -> Array:
    widths = [(pads[2 * i], pads[2 * i + 1]) for i in range(len(pads) // 2)][::-1]
    widths = [(0, 0)] * (x.ndim - len(widths)) + widths
    if mode == "constant":
        return np.pad(x, widths, constant_values=-1)
    return np.pad(x, widths, {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode])  # type: ignore[call-overload]


def _move_expand(x: Array, shape: list[int]) -> Array:
    lead = len(shape) - x.ndim
    wanted = [x.shape[i - lead] if s == -1 else s for i, s in enumerate(shape)]
    return np.broadcast_to(x, wanted)


MOVES: dict[str, Any] = {  # on the numbers of the elements, which gives the index
    "reshape": lambda x, shape: x.reshape(shape),
    "permute": lambda x, dims: x.transpose(dims),
    "slice": lambda x, dim, start, stop, step: x[(*[slice(None)] * dim, slice(start, stop, step))],
    "select": lambda x, dim, index: np.take(x, index, axis=dim),
    "expand": _move_expand,
    "flip": lambda x, dims: np.flip(x, dims),
    "roll": lambda x, shifts, dims: np.roll(x, shifts, dims),
    "pad": _move_pad,
    "detach": lambda x: x,
    "cast": lambda x, dtype: x,  # over the real numbers a conversion changes nothing
}


def _beside(shapes: list[tuple[int, ...]], own: int, dim: int) -> Array:
    """Broadcasting: which element of operand `own` an element of `a ± b` reads."""
    numbers = np.arange(math.prod(shapes[own])).reshape(shapes[own])
    return np.broadcast_to(numbers, np.broadcast_shapes(*shapes))


def _put(join: Any) -> Any:
    def index(shapes: list[tuple[int, ...]], own: int, dim: int) -> Array:
        parts = [np.full(shape, -1) for shape in shapes]
        parts[own] = np.arange(math.prod(shapes[own])).reshape(shapes[own])
        return join(parts, axis=dim)

    return index


JOINS: dict[str, Any] = {
    "add": _beside,
    "sub": _beside,
    "cat": _put(np.concatenate),
    "stack": _put(np.stack),
}
# What a function of one number is to a walk: piecewise linear with a kink at 0, or s-shaped.
CURVES = {"relu": "kinked", "leaky_relu": "kinked", "sigmoid": "sigmoid", "tanh": "tanh"}
SPATIAL = ("conv", "conv_transpose", "avg_pool", "max_pool", "adaptive_avg_pool")


class Network:
    """The program of a certificate, as steps.

    Args:
        program: inputs, nodes and the output, as in the file.
        tensors: constants by name.
        arithmetic: what numbers are.
    """

    gather = Gather

    def __init__(
        self, program: dict[str, Any], tensors: dict[str, Array], arithmetic: Arithmetic
    ) -> None:
        self.arithmetic, self.one = arithmetic, arithmetic.array(1.0).item()
        self.tensors = {name: arithmetic.array(tensor) for name, tensor in tensors.items()}
        self.steps: list[Step] = []
        self.position: dict[str, int] = {}
        for given in program["inputs"]:
            self._add("%" + given["name"], Step(tuple(given["shape"])))
        for node in program["nodes"]:
            step = self._step(node["op"], node["inputs"], dict(node["attrs"]))
            self._add("%" + node["name"], step)
        self.output = self.position[program["output"]]

    def _add(self, name: str, step: Step) -> None:
        require(name not in self.position, f"{name} is defined twice")
        step.name = name
        self.position[name] = len(self.steps)
        self.steps.append(step)

    def _step(self, op: str, inputs: list[str], attrs: dict[str, Any]) -> Step:
        # A position is a value that depends on the input, an array is a constant.
        operands = [
            self.position[text] if text[0] == "%" else self.tensors[text[1:]] for text in inputs
        ]
        if op in ("add_scalar", "mul_scalar", "div_scalar"):
            op, operands = op[:3], [*operands, self._number(attrs.pop("other"))]
        elif op == "neg":
            op, operands = "mul", [*operands, self._number(-1.0)]
        if op in JOINS:
            return self._joined(op, operands, **attrs)
        known = op in MOVES or op in CURVES or hasattr(self, "_op_" + op) or op[:-2] in SPATIAL
        require(known, f"cannot check: the op {op!r} is unknown to the checker")
        moving = [i for i, operand in enumerate(operands) if isinstance(operand, int)]
        single = len(moving) == 1 and (moving[0] == 0 or op == "mul")
        require(single, f"cannot check: {op!r} of several values that depend on the input")
        source = operands.pop(moving[0])
        shape = self.steps[source].shape
        if op in MOVES:
            step = self._moved(op, shape, *operands, **attrs)
        elif op in CURVES:
            step = self._curve(op, shape, *operands, **attrs)
        elif op[:-2] in SPATIAL:
            require(shape[0] == 1 and len(shape) == int(op[-2]) + 2, f"{op}: not one sample")
            step = getattr(self, "_" + op[:-2])(int(op[-2]), shape, *operands, **attrs)
        else:
            step = getattr(self, "_op_" + op)(shape, *operands, **attrs)
        step.source = source
        step.parts = [(source, map_) for _, map_ in step.parts]
        return step

    def _number(self, value: float) -> Array:
        return self.arithmetic.array(float(value))

    def _curve(self, op: str, shape: tuple[int, ...], negative_slope: float = 0.0) -> Step:
        return Step(shape, curve=CURVES[op], kink=self._number(negative_slope).item())

    @staticmethod
    def _affine(shape: tuple[int, ...], map_: Any, bias: Any = None) -> Step:
        return Step(shape, [(-1, map_)], bias)

    def _moved(self, op: str, shape: tuple[int, ...], /, **attrs: Any) -> Step:
        moved = MOVES[op](np.arange(math.prod(shape)).reshape(shape), **attrs)
        index, bias = moved.reshape(-1, 1), None
        if op == "pad" and attrs["mode"] == "constant":
            value = self.arithmetic.array(np.where(index[:, 0] < 0, float(attrs["value"]), 0.0))
            bias = (value, value)
        return self._affine(moved.shape, Gather(index, math.prod(shape)), bias)

    def _joined(self, op: str, operands: list[Any], dim: int = 0) -> Step:
        """`a ± b` and joins: each operand is placed among zeros, and the parts are added."""
        moving = [isinstance(operand, int) for operand in operands]
        require(any(moving) and (op in ("cat", "stack") or len(operands) == 2), f"{op}: operands")
        shapes = [self.steps[o].shape if isinstance(o, int) else o.shape for o in operands]
        indices = [JOINS[op](shapes, i, dim) for i in range(len(operands))]
        step, total = Step(indices[0].shape), self.arithmetic.zeros(indices[0].size)
        for i, (index, operand) in enumerate(zip(indices, operands, strict=True)):
            sign = self.arithmetic.array(-np.ones(index.size)) if op == "sub" and i else None
            placed = Gather(index.reshape(-1, 1), math.prod(shapes[i]), sign)
            if moving[i]:
                step.parts.append((operand, placed))
            else:  # exact: at an element of the result at most one constant is not 0
                total = total + placed.apply(operand.reshape(1, -1))[0]
        step.bias = None if all(moving) else (total, total)
        return step

    def _scaled(self, shape: tuple[int, ...], scale: Array, error: Any = 0) -> Step:
        require(np.broadcast_shapes(shape, scale.shape) == shape, "a factor that broadcasts")
        n = math.prod(shape)
        scale = np.broadcast_to(scale, shape).reshape(-1)
        return self._affine(shape, Gather(np.arange(n)[:, None], n, scale, error))

    def _op_mul(self, shape: Any, factor: Array) -> Step:
        return self._scaled(shape, factor)

    def _op_div(self, shape: Any, divisor: Array) -> Step:
        return self._scaled(shape, *self.arithmetic.quotient(self.one, divisor))

    def _op_linear(self, shape: Any, weight: Array, bias: Array = None) -> Step:
        require(weight.ndim == 2 and weight.shape[1] == shape[-1], "linear: shapes differ")
        out = (*shape[:-1], len(weight))
        spread = None if bias is None else np.broadcast_to(bias, out).reshape(-1)
        return self._affine(out, Dense(weight), None if bias is None else (spread, spread))

    def _op_sum(self, shape: Any, dims: list[int], keepdim: bool, mean: bool = False) -> Step:
        own = np.arange(math.prod(shape)).reshape(shape)
        kept = [d for d in range(len(shape)) if d not in dims]
        index = own.transpose([*kept, *dims]).reshape(math.prod(shape[d] for d in kept), -1)
        out = tuple(1 if d in dims else s for d, s in enumerate(shape) if keepdim or d not in dims)
        return self._average(out, index, math.prod(shape), index.shape[1] if mean else None)

    def _op_mean(self, shape: Any, dims: list[int], keepdim: bool) -> Step:
        return self._op_sum(shape, dims, keepdim, mean=True)

    def _average(self, out: Any, index: Array, inputs: int, counts: Any) -> Step:
        if counts is None:
            return self._affine(out, Gather(index, inputs))
        counts = self.arithmetic.array(np.broadcast_to(counts, len(index)))
        scale = self.arithmetic.quotient(self.one, counts)
        return self._affine(out, Gather(index, inputs, *scale))

    def _op_batch_norm(self, shape: Any, mean: Array, var: Array, *rest: Array, eps: float) -> Step:
        """`(x − mean) / sqrt(var + eps)·weight + bias`, its scale and bias enclosed."""
        ar, n = self.arithmetic, math.prod(shape)
        weight, bias = rest if rest else (ar.array(np.ones(len(mean))), ar.zeros(len(mean)))
        root, error = ar.sqrt(var + ar.array(float(eps)))
        scale, more = ar.quotient(weight, root)
        error = error + more + 4 * ar.u
        shift = mean * scale
        slack = ar.up(ar.up(np.abs(shift) * (2 * error)) + 4 * ar.eta)
        ends = ar.down(ar.down(bias - shift) - slack), ar.up(ar.up(bias - shift) + slack)
        each = np.arange(len(mean)).reshape(1, -1, *(1,) * (len(shape) - 2))
        channel = np.broadcast_to(each, shape).reshape(-1)
        map_ = Gather(np.arange(n)[:, None], n, scale[channel], error)
        return self._affine(shape, map_, (ends[0][channel], ends[1][channel]))

    def _conv(
        self, spatial: int, shape: Any, weight: Array, *bias: Array, stride: Any, padding: Any,
        dilation: Any, groups: int, output_padding: Any = None,
    ) -> Step:  # fmt: skip
        swap = output_padding is not None
        stride, pad, dilation, extra = (
            _sizes(spatial, value) for value in (stride, padding, dilation, output_padding or 0)
        )
        whole = groups >= 1 and min(*stride, *dilation) >= 1 and min(*pad, *extra) >= 0
        require(whole, "convolution: a stride, dilation, padding or group that means nothing")
        kernel = weight.shape[2:]
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        if swap:
            full = zip(shape[2:], stride, pad, reach, extra, strict=True)
            large = tuple((n - 1) * s - 2 * p + r + e for n, s, p, r, e in full)
            small, out = shape[2:], (1, weight.shape[1] * groups, *large)
        else:
            ends = zip(shape[2:], pad, reach, stride, strict=True)
            small = tuple((n + 2 * p - r) // s + 1 for n, p, r, s in ends)
            large, out = shape[2:], (1, len(weight), *small)
        each = zip(large, small, kernel, stride, pad, dilation, strict=True)
        index = _plane([_taps(*options) for options in each], large)
        split = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
        channels = split.shape[1 if swap else 2] * groups
        require(channels == shape[1], "convolution: channels differ")
        conv = Conv(split, index, math.prod(large), swap)
        spread = [
            np.broadcast_to(b.reshape(-1, *(1,) * spatial), out[1:]).reshape(-1) for b in bias
        ]
        return self._affine(out, conv, (spread * 2) if bias else None)

    _conv_transpose = _conv

    @staticmethod
    def _windows(
        spatial: int, shape: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool
    ) -> tuple[Any, Array, Array]:
        """Output shape, index, and how many elements (padding included) a window covers."""
        counts, positions, covered = [], [], np.ones(1, dtype=np.int64)
        options = (_sizes(spatial, value) for value in (kernel, stride, padding, dilation))
        for size, k, s, p, d in zip(shape[2:], *options, strict=True):
            room = size + 2 * p - d * (k - 1) - 1
            count = (-(-room // s) if ceil else room // s) + 1
            # A window that starts in the padding on the right is left out.
            count -= ceil and (count - 1) * s >= size + p
            counts.append(count)
            positions.append(_taps(size, count, k, s, p, d))
            own = (_taps(size + 2 * p, count, k, s, 0, d) >= 0).sum(1)
            covered = (covered[:, None] * own[None]).reshape(-1)
        index = _per_channel(_plane(positions, shape[2:]), shape[1], math.prod(shape[2:]))
        return (1, shape[1], *counts), index, np.tile(covered, shape[1])

    def _avg_pool(
        self, spatial: int, shape: Any, *, kernel_size: Any, stride: Any, padding: Any,
        ceil_mode: bool, count_include_pad: bool,
    ) -> Step:  # fmt: skip
        found = self._windows(spatial, shape, kernel_size, stride, padding, 1, ceil_mode)
        out, index, covered = found
        counts = covered if count_include_pad else (index >= 0).sum(1)
        return self._average(out, index, math.prod(shape), counts)

    def _max_pool(
        self, spatial: int, shape: Any, *, kernel_size: Any, stride: Any, padding: Any,
        dilation: Any, ceil_mode: bool,
    ) -> Step:  # fmt: skip
        found = self._windows(spatial, shape, kernel_size, stride, padding, dilation, ceil_mode)
        require(bool((found[1] >= 0).any(1).all()), "max_pool with an empty window")
        return Step(found[0], windows=found[1])

    def _adaptive_avg_pool(self, spatial: int, shape: Any, *, output_size: Any) -> Step:
        positions, target = [], _sizes(spatial, output_size)
        for size, count in zip(shape[2:], target, strict=True):
            spans = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
            most = max(stop - start for start, stop in spans)
            positions.append(np.array([[*range(a, b), *[-1] * (most - b + a)] for a, b in spans]))
        index = _per_channel(_plane(positions, shape[2:]), shape[1], math.prod(shape[2:]))
        counts = (index >= 0).sum(1)
        return self._average((1, shape[1], *target), index, math.prod(shape), counts)
