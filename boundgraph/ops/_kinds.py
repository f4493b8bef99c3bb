"""Constructors that derive the rules of an op from its kind."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import LinearForm, Lines
from boundgraph.domains.symbolic import Symbolic, diagonal
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
from boundgraph.relaxations.relaxation import Parallel


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
        unit_rows: see `OpSpec`.
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
    parallel: Rule | None = None,
    lines: Rule | None = None,
    learnable: bool = False,
    kinks: Rule | None = None,
    rounding: Rounding,
    sample: Sampler,
    summary: str = "",
) -> OpSpec:
    """A function of one tensor, element by element.

    Args:
        interval: the interval rule; absent for an increasing function, which maps the ends.
        parallel: `(pre: Interval, **attrs) -> Parallel`, two parallel lines that enclose
            the function over `pre`; absent, the symbolic rule forgets correlation.
        lines: `(pre: Interval, **attrs) -> Lines` for backward bounds; the parallel lines
            where absent, and the function's range where those are absent too.
        learnable: `lines` takes the slope of the lower line as an optional second operand.
        kinks: see `OpSpec`.
    """
    interval_rule: Rule

    def increasing(x: Interval, **attrs: Any) -> Interval:
        return Interval(concrete(x.lower, **attrs), concrete(x.upper, **attrs))

    def symbolic(
        x: Symbolic,
        pre: Interval,
        *,
        block: str,
        batch_dim: int | None,
        features: tuple[int, ...],
        **attrs: Any,
    ) -> Symbolic:
        assert parallel is not None
        lines: Parallel = parallel(pre, **attrs)
        scaled = x.map(lambda c: lines.slope * c + lines.middle, lambda g: lines.slope * g)
        return scaled.with_block(block, diagonal(lines.half_gap, batch_dim, features))

    interval_rule = interval or increasing

    def two_lines(pre: Interval, *slope: Tensor | None, **attrs: Any) -> Lines:
        if lines is not None:
            return lines(pre, *slope, **attrs)
        if parallel is None:
            return Lines.constant(interval_rule(pre, **attrs))
        band: Parallel = parallel(pre, **attrs)
        lower, upper = band.middle - band.half_gap, band.middle + band.half_gap
        return Lines(band.slope, lower, band.slope, upper)

    def backward(
        form: LinearForm,
        pre: Interval,
        *slope: Tensor | None,
        operand: int,
        carry: bool,
        shapes: tuple[tuple[int, ...], ...],
        target: tuple[int, ...],
        sample_dims: tuple[int, ...],
        **attrs: Any,
    ) -> LinearForm:
        return form.through(two_lines(pre, *slope, **attrs), sample_dims)

    return register(
        OpSpec(
            name,
            Kind.ELEMENTWISE,
            concrete,
            interval=interval_rule,
            symbolic=symbolic if parallel else None,
            relaxed=parallel is not None,
            boundable=(0,),
            batch=keep_batch,
            rounding=rounding,
            backward=backward,
            lines=two_lines,
            learnable=learnable,
            kinks=kinks,
            sample=sample,
            summary=summary,
        )
    )
