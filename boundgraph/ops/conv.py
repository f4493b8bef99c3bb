"""Convolutions and transposed convolutions in one, two and three dimensions."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from boundgraph.domains.balls import safe_norm
from boundgraph.domains.linear_form import LinearForm
from boundgraph.ir.program import Value
from boundgraph.ops._kinds import affine
from boundgraph.ops._spec import Lowering, OpCase, OpSpec, Rounding, lowers, over_symbols

aten = torch.ops.aten
_FORWARD = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def _spread(value: Any, count: int) -> tuple[int, ...]:
    """One number for all spatial dimensions, or one each."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return values * count if len(values) == 1 else values


def _terms(transposed: bool) -> Callable[..., int]:
    def count(x: Tensor, weight: Tensor, *_: Tensor, **__: Any) -> int:
        # A transposed convolution accumulates over input channels (dimension 0).
        channels = weight.shape[0] if transposed else weight.shape[1]
        return channels * math.prod(weight.shape[2:]) + 1

    return count


def _channel_blocks(x: Tensor, weight: Tensor, *_: Tensor, **__: Any) -> int:
    """Two blocks of channels where sums are long: more cost much time (`docs/soundness.md`)."""
    return 2 if weight.shape[1] % 2 == 0 and weight[0].numel() >= 96 else 1


def _sampler(spatial: int, transposed: bool) -> Callable[[random.Random], OpCase]:
    def sample(rng: random.Random) -> OpCase:
        groups = rng.choice((1, 1, 2))
        inputs, outputs = groups * rng.randint(1, 2), groups * rng.randint(1, 2)
        kernel = tuple(rng.randint(1, 3) for _ in range(spatial))
        stride = tuple(rng.randint(1, 2) for _ in range(spatial))
        dilation = tuple(rng.randint(1, 2) for _ in range(spatial))
        padding = tuple(rng.randint(0, 1) for _ in range(spatial))
        size = tuple(rng.randint(5, 6) for _ in range(spatial))
        attrs: dict[str, Any] = {"stride": stride, "padding": padding}
        if transposed:
            attrs["output_padding"] = tuple(
                rng.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)
            )
            weight = (inputs, outputs // groups, *kernel)
        else:
            weight = (outputs, inputs // groups, *kernel)
        attrs |= {"groups": groups, "dilation": dilation}
        shapes = ((rng.randint(1, 2), inputs, *size), weight)
        return OpCase((*shapes, (outputs,)) if rng.random() < 0.5 else shapes, attrs)

    return sample


def _adjoint_of_forward(spatial: int) -> Callable[..., Tensor]:
    """The transpose of a convolution: a transposed convolution to the operand's size."""
    fn = _TRANSPOSED[spatial - 1]

    def adjoint(
        coeff: Tensor, weight: Tensor, *_: Tensor, shapes: Any, target: Any, **attrs: Any
    ) -> Tensor:
        stride, padding, dilation = attrs["stride"], attrs["padding"], attrs["dilation"]
        kernel = shapes[1][2:]
        # Positions that no window reached after the last stride come back as padding.
        missed = tuple(
            size - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
            for size, out, s, p, d, k in zip(
                shapes[0][2:], target[2:], stride, padding, dilation, kernel, strict=True
            )
        )
        return over_symbols(
            lambda folded: fn(
                folded,
                weight,
                stride=stride,
                padding=padding,
                output_padding=missed,
                groups=attrs["groups"],
                dilation=dilation,
            ),
            coeff,
        )

    return adjoint


def _adjoint_of_transposed(spatial: int) -> Callable[..., Tensor]:
    """The transpose of a transposed convolution: a convolution, cut to the operand's size."""
    fn = _FORWARD[spatial - 1]

    def adjoint(
        coeff: Tensor, weight: Tensor, *_: Tensor, shapes: Any, target: Any, **attrs: Any
    ) -> Tensor:
        def transpose(folded: Tensor) -> Tensor:
            back = fn(
                folded,
                weight,
                stride=attrs["stride"],
                padding=attrs["padding"],
                dilation=attrs["dilation"],
                groups=attrs["groups"],
            )
            for dim, size in enumerate(shapes[0][2:], start=2):
                back = back.narrow(dim, 0, size)
            return back

        return over_symbols(transpose, coeff)

    return adjoint


def _kernel_patches(
    units: Tensor,
    weight: Tensor,
    *bias: Tensor,
    shapes: Any,
    target: Any,
    operand: int,
    carry: bool,
    sample_dims: tuple[int, ...],
    **attrs: Any,
) -> LinearForm | None:
    """Rows of a convolution's outputs: each is a kernel in the window of its position."""
    spatial = len(weight.shape) - 2
    if attrs["groups"] != 1 or sample_dims != tuple(range(2, spatial + 3)):
        return None
    place = torch.unravel_index(units, tuple(target[1:]))
    kernels = weight[place[0]]
    channels = torch.arange(weight.shape[1], device=units.device)
    index = [
        torch.arange(len(units), device=units.device).reshape((-1,) + (1,) * (spatial + 1)),
        channels.reshape((1, -1) + (1,) * spatial),
    ]
    padded = []
    for dim, size in enumerate(weight.shape[2:]):
        step, pad, spread = attrs["stride"][dim], attrs["padding"][dim], attrs["dilation"][dim]
        taps = (place[dim + 1] * step).unsqueeze(1) + torch.arange(
            size, device=units.device
        ) * spread
        shape = [len(units)] + [1] * (spatial + 1)
        shape[dim + 2] = size
        index.append(taps.reshape(shape))
        padded.append(shapes[0][dim + 2] + 2 * pad)
    full = weight.new_zeros((len(units), weight.shape[1], *padded))
    full = full.index_put(tuple(index), kernels)
    for dim, size in enumerate(shapes[0][2:]):
        full = full.narrow(dim + 2, attrs["padding"][dim], size)
    offset = bias[0][place[0]].unsqueeze(1) if carry and bias else None
    return LinearForm(full.unsqueeze(1), offset)


def _define(name: str, fn: Callable[..., Tensor], spatial: int, transposed: bool) -> OpSpec:
    def concrete(x: Tensor, weight: Tensor, *bias: Tensor, **attrs: Any) -> Tensor:
        return fn(x, weight, *bias, **attrs)

    def linear_part(x: Tensor, weight: Tensor, *_: Tensor, **attrs: Any) -> Tensor:
        return fn(x, weight, **attrs)

    def magnitude(x: Tensor, weight: Tensor, *_: Tensor, **attrs: Any) -> Tensor:
        return fn(x, weight.abs(), **attrs)

    def offset(x: Tensor, weight: Tensor, *bias: Tensor, **_: Any) -> Tensor | None:
        return bias[0].abs().reshape((-1, *(1,) * spatial)) if bias else None

    def reached(x: Tensor, weight: Tensor, *_: Tensor, groups: int, **__: Any) -> int:
        outputs = weight.shape[1] if transposed else weight.shape[0] // groups
        return outputs * math.prod(weight.shape[2:])

    def blocks(
        x: Tensor, weight: Tensor, *bias: Tensor, parts: int, groups: int, **attrs: Any
    ) -> Tensor:
        """Blocks of input channels as groups of one convolution."""
        split = weight.unflatten(0, (groups, -1)).unflatten(2, (parts, -1)).transpose(1, 2)
        partial = fn(x, split.flatten(0, 2), groups=groups * parts, **attrs)
        total = partial.unflatten(1, (groups, parts, -1)).sum(2).flatten(1, 2)
        return total + bias[0].reshape((-1, *(1,) * spatial)) if bias else total

    def constant(
        coeff: Tensor, weight: Tensor, *bias: Tensor, dims: tuple[int, ...], **_: Any
    ) -> Tensor | None:
        if not bias:
            return None
        rows = torch.matmul(coeff.sum(tuple(range(3, 3 + spatial))), bias[0])
        return rows.sum(1) if 1 in dims else rows

    def row_norm(weight: Tensor, *_: Tensor, q: float) -> Tensor:
        """Of the whole kernel: exact inside, an upper bound where it overlaps the padding."""
        return safe_norm(weight.flatten(1), q, 1).reshape((-1, *(1,) * spatial))

    return affine(
        name,
        concrete,
        row_norm=None if transposed else row_norm,
        adjoint=_adjoint_of_transposed(spatial) if transposed else _adjoint_of_forward(spatial),
        constant=constant,
        unit_rows=None if transposed else _kernel_patches,
        blocks=None if transposed else blocks,
        linear=linear_part,
        magnitude=magnitude,
        rounding=Rounding(
            terms=_terms(transposed),
            offset=offset,
            blocks=None if transposed else _channel_blocks,
            transposed=reached,
        ),
        sample=_sampler(spatial, transposed),
        summary=f"{spatial}-d {'transposed ' if transposed else ''}convolution, zero padding",
    )


for _n in (1, 2, 3):
    _define(f"conv{_n}d", _FORWARD[_n - 1], _n, transposed=False)
    _define(f"conv_transpose{_n}d", _TRANSPOSED[_n - 1], _n, transposed=True)


def _with_batch(b: Lowering, x: Value, spatial: int, run: Callable[[Value], Value]) -> Value:
    """Run on a batch of one where the model passes a single unbatched sample."""
    shape = b.shape(x)
    if len(shape) == spatial + 2:
        return run(x)
    out = run(b.emit("reshape", x, shape=(1, *shape)))
    return b.emit("reshape", out, shape=b.shape(out)[1:])


def _explicit(
    b: Lowering, x: Value, weight: Value, padding: str, dilation: tuple[int, ...]
) -> tuple[Value, tuple[int, ...]]:
    """`padding="same"` in numbers; an odd total takes one more at the end, by padding first."""
    kernel = [size for size in b.shape(weight)[2:] if isinstance(size, int)]
    if padding == "valid":
        return x, (0,) * len(kernel)
    totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    if all(total % 2 == 0 for total in totals):
        return x, tuple(total // 2 for total in totals)
    ends = ((total // 2, total - total // 2) for total in reversed(totals))
    pads = tuple(entry for pair in ends for entry in pair)
    padded = b.emit("pad", x, pads=pads, mode="constant", value=0.0)
    return padded, (0,) * len(kernel)


def _lower_forward(spatial: int) -> Callable[..., Value]:
    def lower(
        b: Lowering,
        input: Value,
        weight: Value,
        bias: Value | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Value:
        steps = _spread(dilation, spatial)
        if isinstance(padding, str):
            input, padding = _explicit(b, input, weight, padding, steps)
        attrs = {
            "stride": _spread(stride, spatial),
            "padding": _spread(padding, spatial),
            "dilation": steps,
            "groups": groups,
        }
        operands = (weight,) if bias is None else (weight, bias)
        return _with_batch(
            b, input, spatial, lambda x: b.emit(f"conv{spatial}d", x, *operands, **attrs)
        )

    return lower


def _lower_transposed(spatial: int) -> Callable[..., Value]:
    def lower(
        b: Lowering,
        input: Value,
        weight: Value,
        bias: Value | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Value:
        attrs = {
            "stride": _spread(stride, spatial),
            "padding": _spread(padding, spatial),
            "output_padding": _spread(output_padding, spatial),
            "groups": groups,
            "dilation": _spread(dilation, spatial),
        }
        operands = (weight,) if bias is None else (weight, bias)
        return _with_batch(
            b, input, spatial, lambda x: b.emit(f"conv_transpose{spatial}d", x, *operands, **attrs)
        )

    return lower


_ATEN_FORWARD = (
    (aten.conv1d.default, aten.conv1d.padding),
    (aten.conv2d.default, aten.conv2d.padding),
    (aten.conv3d.default, aten.conv3d.padding),
)
_ATEN_TRANSPOSED = (
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
)
for _n in (1, 2, 3):
    lowers(_FORWARD[_n - 1], *_ATEN_FORWARD[_n - 1])(_lower_forward(_n))
    lowers(_TRANSPOSED[_n - 1], _ATEN_TRANSPOSED[_n - 1])(_lower_transposed(_n))
