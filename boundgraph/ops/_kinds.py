"""Constructors that derive the rules of an op from its kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import LinearForm, Lines
from boundgraph.domains.symbolic import Symbolic, diagonal
from boundgraph.domains.windowed import Windowed
from boundgraph.ops._sharing import shared
from boundgraph.ops._spec import (
    UNDECLARED,
    BatchRule,
    Kind,
    OpSpec,
    Rounding,
    Rule,
    Sampler,
    batch_first,
    keep_batch,
    over_symbols,
    register,
)
from boundgraph.relaxations.fallback import Fallback
from boundgraph.relaxations.relaxation import Curve, Parallel, Scalar


def affine(
    name: str,
    concrete: Rule,
    *,
    linear: Rule | None = None,
    magnitude: Rule | None = None,
    rounding: Rounding = UNDECLARED,
    sample: Sampler,
    batch: BatchRule = batch_first,
    leading: bool = False,
    lifted: Rule | None = None,
    adjoint: Rule | None = None,
    constant: Rule | None = None,
    row_norm: Rule | None = None,
    unit_rows: Rule | None = None,
    blocks: Rule | None = None,
    summary: str = "",
) -> OpSpec:
    """An op affine in operand 0, with constant (unbounded) further operands.

    The interval rule is centre/radius: `center' = concrete(center)`,
    `radius' = |L|·radius`, exact up to rounding because every output element depends on
    each input element once.

    Args:
        linear: the op without its offset; `concrete` itself where there is none.
        magnitude: `|L|`; `linear` where L is already non-negative.
        leading: the op accepts any number of leading dimensions, so that generators need
            no reshaping.
        lifted: the linear part on a tensor with one more leading dimension, for ops whose
            attributes name dimensions. Without `leading` or `lifted`, symbols are folded
            into dimension 0, which must be the batch.
        adjoint: `(coeff, *rest, shapes, target, **attrs)`: the transpose of the linear part, on
            coefficients `[rows, *result shape]`.
        constant: `(coeff, *rest, dims, **attrs)`: coefficients times the offset, summed
            over a sample; absent where the op has no offset.
        row_norm: see `OpSpec`.
        unit_rows, blocks: see `OpSpec`.
    """
    linear_part: Rule = linear or concrete
    absolute: Rule = magnitude or linear_part

    def interval(x: Interval, *rest: Tensor, **attrs: Any) -> Interval:
        return Interval.from_center_radius(
            concrete(x.center, *rest, **attrs), absolute(x.radius, *rest, **attrs)
        )

    def symbolic(x: Symbolic, *rest: Tensor, **attrs: Any) -> Symbolic:
        def block(generators: Tensor) -> Tensor:
            if lifted is not None:
                return lifted(generators, *rest, **attrs)
            if leading:
                return linear_part(generators, *rest, **attrs)
            return over_symbols(lambda folded: linear_part(folded, *rest, **attrs), generators)

        return x.map(lambda center: concrete(center, *rest, **attrs), block)

    return register(
        OpSpec(
            name,
            Kind.AFFINE,
            concrete,
            interval=interval,
            symbolic=symbolic,
            magnitude=absolute,
            boundable=(0,),
            batch=batch,
            rounding=rounding,
            centred=True,
            linear=linear is None,
            backward=transpose_rule(adjoint, constant) if adjoint else None,
            unit_rows=unit_rows,
            blocks=blocks,
            sample=sample,
            row_norm=row_norm,
            summary=summary,
        )
    )


def transpose_rule(adjoint: Rule, constant: Rule | None = None) -> Rule:
    """The backward rule of an op that is affine in operand 0."""

    def backward(
        form: LinearForm,
        *rest: Tensor,
        operand: int,
        carry: bool,
        shapes: tuple[tuple[int, ...], ...],
        target: tuple[int, ...],
        sample_dims: tuple[int, ...],
        **attrs: Any,
    ) -> LinearForm:
        coeff = adjoint(form.coeff, *rest, shapes=shapes, target=target, **attrs)
        if not carry:
            return LinearForm(coeff)
        term = None if constant is None else constant(form.coeff, *rest, dims=sample_dims, **attrs)
        return LinearForm(coeff, form.shifted(term))

    return backward


def structural(
    name: str,
    concrete: Rule,
    *,
    lifted: Rule,
    adjoint: Rule | None = None,
    sample: Sampler,
    batch: BatchRule,
    summary: str = "",
) -> OpSpec:
    """An op that only moves elements of operand 0, to where constant operands may say.

    Args:
        lifted: the same move on a tensor with one more leading dimension.
        adjoint: `(coeff, *rest, shapes, target, **attrs)`: coefficients moved back.
    """

    def interval(x: Interval, *rest: Tensor, **attrs: Any) -> Interval:
        return x.map(lambda part: concrete(part, *rest, **attrs))

    def symbolic(x: Symbolic, *rest: Tensor, **attrs: Any) -> Symbolic:
        return x.map(lambda c: concrete(c, *rest, **attrs), lambda g: lifted(g, *rest, **attrs))

    return register(
        OpSpec(
            name,
            Kind.STRUCTURAL,
            concrete,
            interval=interval,
            symbolic=symbolic,
            magnitude=concrete,
            boundable=(0,),
            batch=batch,
            backward=transpose_rule(adjoint) if adjoint else None,
            sample=sample,
            summary=summary,
        )
    )


def elementwise(
    name: str,
    concrete: Rule,
    *,
    interval: Rule | None = None,
    curve: Curve | Callable[..., Curve] | None = None,
    parallel: Rule | None = None,
    lines: Rule | None = None,
    learnable: bool = False,
    kinks: Rule | None = None,
    magnitude: Rule | None = None,
    rounding: Rounding,
    sample: Sampler,
    partial: bool = False,
    user: bool = False,
    summary: str = "",
    add: Callable[[OpSpec], OpSpec] = register,
) -> OpSpec:
    """A function of one tensor, element by element, with constant further operands.

    Args:
        interval: the interval rule; absent for an increasing function, which maps the ends.
        curve: its shape, or what makes that from the constant operands and attributes; the
            universal fallback where absent. It gives the two rules below.
        parallel: `(pre: Interval, *rest, **attrs) -> Parallel`, two parallel lines that
            enclose the function over `pre`, where they do not follow from the curve.
        lines: `(pre: Interval, *rest, **attrs) -> Lines` for backward bounds.
        learnable: `lines` takes the slope of the lower line as an optional last operand.
        magnitude: size of the terms that may cancel in `concrete`, of absolute values;
            `rounding.terms` says how many roundings of that size there are.
        add: what to do with the op that results.
        kinks, partial, user: see `OpSpec`.
    """

    def increasing(x: Interval, *rest: Tensor, **attrs: Any) -> Interval:
        return Interval(concrete(x.lower, *rest, **attrs), concrete(x.upper, *rest, **attrs))

    interval_rule: Rule = interval or increasing

    def scalar(rest: tuple[Tensor, ...], attrs: dict[str, Any]) -> Scalar:
        def error(points: Tensor, values: Tensor) -> Tensor:
            found = values.abs() * (2.0 * rounding.ulps)
            if magnitude is None or rounding.terms is None:
                return found
            terms = 2.0 * rounding.terms(points, *rest, **attrs)
            return found + magnitude(points.abs(), *rest, **attrs) * terms

        return Scalar(
            lambda points: concrete(points, *rest, **attrs),
            lambda x: interval_rule(x, *rest, **attrs),
            error,
        )

    def shape(rest: tuple[Tensor, ...], attrs: dict[str, Any]) -> Curve:
        if curve is None:
            return Fallback()
        return curve(*rest, **attrs) if callable(curve) else curve

    @shared
    def band(pre: Interval, *rest: Tensor, **attrs: Any) -> Parallel:
        if parallel is not None:
            return parallel(pre, *rest, **attrs)
        return shape(rest, attrs).parallel(scalar(rest, attrs), pre)

    @shared
    def two_lines(pre: Interval, *rest: Any, **attrs: Any) -> Lines:
        if lines is not None:
            return lines(pre, *rest, **attrs)
        if curve is None and parallel is not None:
            found = band(pre, *rest, **attrs)
            lower, upper = found.middle - found.half_gap, found.middle + found.half_gap
            return Lines(found.slope, lower, found.slope, upper)
        return shape(rest, attrs).lines(scalar(rest, attrs), pre)

    def symbolic(
        x: Symbolic,
        *rest: Any,
        block: str,
        batch_dim: int | None,
        features: tuple[int, ...],
        windows: Any = (),
        **attrs: Any,
    ) -> Symbolic:
        *constants, pre = rest
        found = band(pre, *constants, **attrs)
        scaled = x.map(lambda c: found.slope * c + found.middle, lambda g: g * found.slope)
        own = (
            Windowed.diagonal(found.half_gap, features)
            if windows
            else diagonal(found.half_gap, batch_dim, features)
        )
        return scaled.with_block(block, own)

    def backward(
        form: LinearForm,
        pre: Interval,
        *rest: Any,
        operand: int,
        carry: bool,
        shapes: tuple[tuple[int, ...], ...],
        target: tuple[int, ...],
        sample_dims: tuple[int, ...],
        parallel: bool = False,
        **attrs: Any,
    ) -> LinearForm:
        if parallel:
            found = band(pre, *rest, **attrs)
            return form.through_band(found.slope, found.middle, found.half_gap, sample_dims)
        return form.through(two_lines(pre, *rest, **attrs), sample_dims)

    return add(
        OpSpec(
            name,
            Kind.ELEMENTWISE,
            concrete,
            interval=interval_rule,
            symbolic=symbolic,
            relaxed=True,
            magnitude=magnitude,
            boundable=(0,),
            batch=keep_batch,
            rounding=rounding,
            backward=backward,
            lines=two_lines,
            learnable=learnable,
            kinks=kinks,
            sample=sample,
            partial=partial,
            user=user,
            summary=summary,
        )
    )
