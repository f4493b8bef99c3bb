"""Every rule of every registered op encloses what the op computes, up to declared rounding."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boundgraph.domains import Interval
from boundgraph.ops import Kind, OpSpec, all_ops, get
from boundgraph.testing import (
    allowance,
    check_interval_rule,
    check_op,
    check_symbolic_rule,
    draw_case,
    excess,
    sample_point,
)

OPS = [spec for spec in all_ops() if spec.sample is not None]
DTYPES = (torch.float64, torch.float32)
# Powers that keep float32 products finite; tests of overflow stand by themselves.
SCALES = st.sampled_from((1.0, 1.0, 1.0, 1e-3, 1e3, 1e-12, 1e12))
by_op = pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.name)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=("float64", "float32"))
slow_draws = settings(
    max_examples=12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@by_op
@by_dtype
@slow_draws
@given(seed=st.integers(0, 2**40), scale=SCALES)
def test_interval_rule_encloses(spec: OpSpec, dtype: torch.dtype, seed: int, scale: float) -> None:
    rng = random.Random(seed)
    check_interval_rule(draw_case(spec, rng, dtype, scale=scale), rng, points=6)


@by_op
@by_dtype
@slow_draws
@given(seed=st.integers(0, 2**40), scale=SCALES)
def test_symbolic_rule_encloses(spec: OpSpec, dtype: torch.dtype, seed: int, scale: float) -> None:
    if spec.symbolic is None:
        pytest.skip("bounded as an interval; tests/golden/op_table.txt lists it")
    rng = random.Random(seed)
    check_symbolic_rule(draw_case(spec, rng, dtype, scale=scale), rng, points=6)


@by_op
@slow_draws
@given(seed=st.integers(0, 2**40))
def test_interval_rule_is_monotone(spec: OpSpec, seed: int) -> None:
    """A part of the region never gets wider bounds."""
    rng = random.Random(seed)
    outer = draw_case(spec, rng)
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    parts = []
    for operand in outer.operands:
        if isinstance(operand, Interval):
            ends = [sample_point(operand, generator) for _ in range(2)]
            operand = Interval(torch.minimum(*ends), torch.maximum(*ends))
        parts.append(operand)
    assert spec.interval is not None
    wide = spec.interval(*outer.operands, **outer.attrs)
    narrow = spec.interval(*parts, **outer.attrs)
    allowed = allowance(spec, outer.operands, outer.attrs, wide)
    assert not (excess(narrow, wide, allowed) > 0).any()


@by_op
@slow_draws
@given(seed=st.integers(0, 2**40))
def test_zero_width_gives_the_value(spec: OpSpec, seed: int) -> None:
    rng = random.Random(seed)
    drawn = draw_case(spec, rng)
    point = drawn.point(rng)
    at_point = [
        Interval.point(value) if isinstance(operand, Interval) else value
        for operand, value in zip(drawn.operands, point, strict=True)
    ]
    assert spec.interval is not None
    result = spec.interval(*at_point, **drawn.attrs)
    value = spec.concrete(*point, **drawn.attrs)
    allowed = allowance(spec, at_point, drawn.attrs, result)
    assert not (excess(result, Interval.point(value), allowed).nan_to_num() > 0).any() or (
        spec.name == "reciprocal" and bool((point[0] == 0).any())
    )


@by_op
@slow_draws
@given(seed=st.integers(0, 2**40))
def test_rules_need_no_one_form(spec: OpSpec, seed: int) -> None:
    """An interval given by its ends or by centre and radius means the same."""
    rng = random.Random(seed)
    drawn = draw_case(spec, rng)
    other = [
        Interval.from_center_radius(operand.center, operand.radius)
        if isinstance(operand, Interval)
        else operand
        for operand in drawn.operands
    ]
    assert spec.interval is not None
    first = spec.interval(*drawn.operands, **drawn.attrs)
    second = spec.interval(*other, **drawn.attrs)
    # Converting moves the ends of the operands by a rounding each.
    moved = [
        Interval(torch.minimum(a.lower, b.lower), torch.maximum(a.upper, b.upper))
        if isinstance(a, Interval)
        else a
        for a, b in zip(drawn.operands, other, strict=True)
    ]
    hull = spec.interval(*moved, **drawn.attrs)
    allowed = allowance(spec, moved, drawn.attrs, hull)
    if spec.name == "reciprocal" and not torch.isfinite(hull.lower).all():
        return  # an end that rounds across 0 changes from finite to infinite
    assert not (excess(first, hull, allowed) > 0).any()
    assert not (excess(second, hull, allowed) > 0).any()


@pytest.mark.parametrize("name", [s.name for s in OPS if s.kind is Kind.STRUCTURAL])
def test_structural_ops_move_ends_exactly(name: str) -> None:
    spec = get(name)
    assert spec is not None and spec.interval is not None
    for seed in range(20):
        rng = random.Random(seed)
        drawn = draw_case(spec, rng)
        result = spec.interval(*drawn.operands, **drawn.attrs)
        lowers = [v.lower if isinstance(v, Interval) else v for v in drawn.operands]
        uppers = [v.upper if isinstance(v, Interval) else v for v in drawn.operands]
        assert torch.equal(result.lower, spec.concrete(*lowers, **drawn.attrs))
        assert torch.equal(result.upper, spec.concrete(*uppers, **drawn.attrs))


@pytest.mark.nightly
@by_op
@by_dtype
def test_many_draws(spec: OpSpec, dtype: torch.dtype) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"{spec.name}: seed {seed}")
    check_op(spec, cases=1000, seed=seed, dtype=dtype)
