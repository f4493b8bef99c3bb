# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Triton kernels of `interval_linear`; float32 sums without TF32, no atomics.

Importing this module imports triton.
"""

import triton
import triton.language as tl

# Tiles of the result, the features of a step, and warps. None spills on sm_90: 32 × 32 × 32
# would (tests/gpu/test_interval_kernel.py assembles them).
PROCESSORS = 132
SMALL = {"tall": 16, "wide": 32, "deep": 32, "num_warps": 4}
LARGE = {"tall": 64, "wide": 64, "deep": 16, "num_warps": 8}


@triton.jit
def _forward(
    center, radius, weight, bias, first, second, m, n, k, scm, sck, srm, srk, swn, swk,
    has_relu: tl.constexpr, has_bias: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr,
    deep: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * tall + tl.arange(0, tall)
    columns = tl.program_id(1) * wide + tl.arange(0, wide)
    middle = tl.zeros((tall, wide), dtype=tl.float32)
    reach = tl.zeros((tall, wide), dtype=tl.float32)
    for start in range(0, k, deep):
        inner = start + tl.arange(0, deep)
        inside = (rows[:, None] < m) & (inner[None, :] < k)
        c = tl.load(center + rows[:, None] * scm + inner[None, :] * sck, mask=inside, other=0.0)
        r = tl.load(radius + rows[:, None] * srm + inner[None, :] * srk, mask=inside, other=0.0)
        inside = (inner[:, None] < k) & (columns[None, :] < n)
        w = tl.load(weight + columns[None, :] * swn + inner[:, None] * swk, mask=inside, other=0.0)
        middle += tl.dot(c, w, input_precision="ieee")
        reach += tl.dot(r, tl.abs(w), input_precision="ieee")
    if has_bias:
        middle += tl.load(bias + columns, mask=columns < n, other=0.0)[None, :]
    if has_relu:
        low, high = middle - reach, middle + reach
        # Comparisons, so that NaN stays NaN.
        middle, reach = tl.where(low <= 0, 0.0, low), tl.where(high <= 0, 0.0, high)
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    place = rows[:, None] * n + columns[None, :]
    tl.store(first + place, middle, mask=inside)
    tl.store(second + place, reach, mask=inside)


@triton.jit
def _gradients(g1, g2, o1, o2, place, inside, has_relu: tl.constexpr):
    """Gradients of centre and radius in front of the relu."""
    a = tl.load(g1 + place, mask=inside, other=0.0)
    b = tl.load(g2 + place, mask=inside, other=0.0)
    if has_relu:
        a = tl.where(tl.load(o1 + place, mask=inside, other=0.0) > 0, a, 0.0)
        b = tl.where(tl.load(o2 + place, mask=inside, other=0.0) > 0, b, 0.0)
        a, b = a + b, b - a
    return a, b


@triton.jit
def _operands(
    g1, g2, o1, o2, weight, of_center, of_radius, m, n, k, swn, swk,
    has_relu: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr, deep: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * tall + tl.arange(0, tall)
    columns = tl.program_id(1) * wide + tl.arange(0, wide)
    middle = tl.zeros((tall, wide), dtype=tl.float32)
    reach = tl.zeros((tall, wide), dtype=tl.float32)
    for start in range(0, n, deep):
        inner = start + tl.arange(0, deep)
        inside = (rows[:, None] < m) & (inner[None, :] < n)
        c, r = _gradients(g1, g2, o1, o2, rows[:, None] * n + inner[None, :], inside, has_relu)
        inside = (inner[:, None] < n) & (columns[None, :] < k)
        w = tl.load(weight + inner[:, None] * swn + columns[None, :] * swk, mask=inside, other=0.0)
        middle += tl.dot(c, w, input_precision="ieee")
        reach += tl.dot(r, tl.abs(w), input_precision="ieee")
    inside = (rows[:, None] < m) & (columns[None, :] < k)
    place = rows[:, None] * k + columns[None, :]
    tl.store(of_center + place, middle, mask=inside)
    tl.store(of_radius + place, reach, mask=inside)


@triton.jit
def _weights(
    g1, g2, o1, o2, center, radius, weight, of_weight, of_bias, m, n, k,
    scm, sck, srm, srk, swn, swk,
    has_relu: tl.constexpr, has_bias: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr,
    deep: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * tall + tl.arange(0, tall)
    columns = tl.program_id(1) * wide + tl.arange(0, wide)
    middle = tl.zeros((tall, wide), dtype=tl.float32)
    reach = tl.zeros((tall, wide), dtype=tl.float32)
    total = tl.zeros((tall,), dtype=tl.float32)
    for start in range(0, m, deep):
        inner = start + tl.arange(0, deep)
        inside = (inner[None, :] < m) & (rows[:, None] < n)
        gc, gr = _gradients(g1, g2, o1, o2, inner[None, :] * n + rows[:, None], inside, has_relu)
        inside = (inner[:, None] < m) & (columns[None, :] < k)
        c = tl.load(center + inner[:, None] * scm + columns[None, :] * sck, mask=inside, other=0.0)
        r = tl.load(radius + inner[:, None] * srm + columns[None, :] * srk, mask=inside, other=0.0)
        middle += tl.dot(gc, c, input_precision="ieee")
        reach += tl.dot(gr, r, input_precision="ieee")
        total += tl.sum(gc, 1)
    inside = (rows[:, None] < n) & (columns[None, :] < k)
    w = tl.load(weight + rows[:, None] * swn + columns[None, :] * swk, mask=inside, other=0.0)
    sign = tl.where(w > 0, 1.0, tl.where(w < 0, -1.0, 0.0))
    tl.store(of_weight + rows[:, None] * k + columns[None, :], middle + sign * reach, mask=inside)
    if has_bias and tl.program_id(1) == 0:
        tl.store(of_bias + rows, total, mask=rows < n)


def tiles(rows, columns):
    """The grid, and tiles large enough for their arithmetic or small enough to fill a GPU."""
    for chosen in (LARGE, SMALL):
        grid = (triton.cdiv(rows, chosen["tall"]), triton.cdiv(columns, chosen["wide"]))
        if grid[0] * grid[1] >= PROCESSORS:
            break
    return grid, chosen


def forward(center, radius, weight, bias, relu):
    (m, k), n = center.shape, weight.shape[0]
    first, second = (center.new_empty(m, n) for _ in range(2))
    strides = (*center.stride(), *radius.stride(), *weight.stride())
    grid, chosen = tiles(m, n)
    _forward[grid](
        center, radius, weight, weight if bias is None else bias, first, second, m, n, k, *strides,
        has_relu=relu, has_bias=bias is not None, **chosen,
    )  # fmt: skip
    return first, second


def backward(g1, g2, first, second, center, radius, weight, has_bias, relu):
    (m, k), n = center.shape, weight.shape[0]
    g1, g2 = g1.contiguous(), g2.contiguous()
    of_center, of_radius = (center.new_empty(m, k) for _ in range(2))
    of_weight, of_bias = center.new_empty(n, k), center.new_empty(n)
    strides = (*center.stride(), *radius.stride(), *weight.stride())
    given = (g1, g2, first, second)
    grid, chosen = tiles(m, k)
    _operands[grid](
        *given, weight, of_center, of_radius, m, n, k, *weight.stride(), has_relu=relu, **chosen
    )
    grid, chosen = tiles(n, k)
    _weights[grid](
        *given, center, radius, weight, of_weight, of_bias, m, n, k, *strides,
        has_relu=relu, has_bias=has_bias, **chosen,
    )  # fmt: skip
    return of_center, of_radius, of_weight, of_bias if has_bias else of_bias.zero_()
