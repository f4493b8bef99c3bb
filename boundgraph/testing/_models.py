"""Check the bounds of a whole model at sampled points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from boundgraph.compiler import METHODS, CompileOptions, compile_capture, norms_by_name
from boundgraph.compiler import _bounded_names as bounded_names
from boundgraph.compiler import _capture as capture_model
from boundgraph.domains.balls import BallInterval, inside_ball, steepest
from boundgraph.domains.interval import Interval
from boundgraph.domains.regions import Region
from boundgraph.domains.symbolic import Symbolic
from boundgraph.domains.windowed import Windowed
from boundgraph.errors import SoundnessError, UnsupportedError
from boundgraph.frontends.capture import Capture
from boundgraph.ir.program import Program, Value
from boundgraph.ir.types import IntervalType
from boundgraph.ops._infer import RegistryTable
from boundgraph.passes import RelaxIBP, run_pipeline
from boundgraph.runtime.emit import ConstantTable, parameter_lookup
from boundgraph.runtime.module import BoundProgram, Bounds
from boundgraph.testing._points import sample_point
from boundgraph.testing._rounding import excess, interpret_with_allowance


def model_allowance(
    model: nn.Module, *regions: Region | Tensor, **options: Any
) -> tuple[Tensor, ...]:
    """How far rounding may move the bounds of each output, by the rounding that ops declare.

    The model's ops are bounded one by one as captured, before any pass merges them, with
    unperturbed inputs as regions of no width, because values computed from those round too.

    Args:
        model, regions, options: as for `boundgraph.compile`.
    """
    captured = capture_model(model, regions, {}, CompileOptions(**options))
    return capture_allowance(captured, *regions)


def capture_allowance(captured: Capture, *regions: Region | Tensor) -> tuple[Tensor, ...]:
    """`model_allowance` of a model that has been captured already.

    Args:
        captured: the model, by `boundgraph.frontends.capture.capture`.
        regions: one per input of the program.
    """
    source = captured.program
    floats = tuple(value.name for value in source.inputs if value.type.is_float)
    try:
        program = _relaxed(source, floats)
    except UnsupportedError:
        # An unperturbed input may stand where no bound can.
        program = _relaxed(source, bounded_names(captured, tuple(regions), {}))
    inputs = [
        _as_input(value, region) for value, region in zip(program.inputs, regions, strict=True)
    ]
    lookup = parameter_lookup(captured.root, ConstantTable(dict(captured.constants)))
    with torch.no_grad():
        _, moved = interpret_with_allowance(program, inputs, lookup)
    return moved


def _relaxed(source: Program, bounded: tuple[str, ...]) -> Program:
    return run_pipeline(source, (RelaxIBP(bounded),), RegistryTable())[0]


def _as_input(value: Value, region: Region | Tensor) -> Interval | Tensor:
    if isinstance(region, Tensor):
        return Interval.point(region) if isinstance(value.type, IntervalType) else region
    return region.interval()


def symbols_of(program: BoundProgram, *regions: Region | Tensor) -> int:
    """Number of symbols per sample in a symbolic or mixed program: terms of its sums."""
    found: dict[str, int] = {}
    for value in program.trace_bounds(*regions).values():
        if isinstance(value, Symbolic):
            found.update(
                {
                    name: block.window.symbols if isinstance(block, Windowed) else block.shape[0]
                    for name, block in value.blocks.items()
                }
            )
    return sum(found.values())


def check_model(
    model: nn.Module,
    *regions: Region | Tensor,
    methods: Sequence[str] = METHODS,
    points: int = 32,
    seed: int = 0,
    **options: Any,
) -> int:
    """Check a model's bounds at sampled points: random, corners and steepest corners.

    Args:
        model: in evaluation mode; its own dtype is that of the bounds.
        regions: one per input, as for `boundgraph.compile`.
        methods: bound methods to check; `mix` must also not be looser than `ibp`.
        points: points of the region to try.
        seed: of the sampling; printed on failure.
        options: for `boundgraph.compile`.

    Returns:
        How many points were compared.

    Raises:
        SoundnessError: a point or `ibp`'s bound shows a bound wrong beyond rounding.
    """
    boxes = [r if isinstance(r, Tensor) else r.interval() for r in regions]
    bounds, allowed = _bounds_by_method(model, regions, methods, options)
    for method in methods:
        ends = _ends(bounds[method])
        for (lower, upper), allow in zip(ends, allowed[method], strict=True):
            if bool((lower - upper > 2.0 * allow).any()):
                raise SoundnessError(
                    f"{method} bounds have a lower end above the upper; seed {seed}"
                )
    generator = torch.Generator().manual_seed(seed)
    for index in range(points):
        inputs = _model_point(model, boxes, generator, index)
        with torch.no_grad():
            outputs = pytree.tree_leaves(model(*inputs))
        for method in methods:
            _compare(
                bounds[method], outputs, allowed[method], f"{method} bounds at point {index}", seed
            )
    if "mix" in methods and "ibp" in methods:
        tight = [Interval(*ends) for ends in _ends(bounds["mix"])]
        _compare(bounds["ibp"], tight, allowed["mix"], "mix is looser than ibp", seed)
    return points


def _bounds_by_method(
    model: nn.Module,
    regions: Sequence[Region | Tensor],
    methods: Sequence[str],
    options: Mapping[str, Any],
) -> tuple[dict[str, Bounds], dict[str, tuple[Tensor, ...]]]:
    def build(method: str, **more: Any) -> BoundProgram:
        norms = norms_by_name(captured, regions, {})
        chosen = CompileOptions(method=method, norms=norms, **options, **more)
        return compile_capture(captured, bounded_names(captured, regions, {}), chosen)

    captured = capture_model(model, regions, {}, CompileOptions(**options))
    reference = build("ibp")
    moved = capture_allowance(captured, *regions)
    widths = [(upper - lower) for lower, upper in _ends(reference(*regions))]
    # Sums over the symbols add terms to every product, at the size of the looser bounds.
    terms = 2.0
    if any(method != "ibp" for method in methods):
        terms += symbols_of(build("symbolic", schedule="forward"), *regions)
    bounds: dict[str, Bounds] = {}
    allowed: dict[str, tuple[Tensor, ...]] = {}
    for method in methods:
        bounds[method] = (reference if method == "ibp" else build(method))(*regions)
        if method == "ibp":
            allowed[method] = tuple(2.0 * move for move in moved)
            continue
        ends = zip(_ends(bounds[method]), widths, moved, strict=True)
        allowed[method] = tuple(
            terms * move * ((upper - lower) / width).nan_to_num(1.0, 1e6).clamp(1.0, 1e6)
            for (lower, upper), width, move in ends
        )
    return bounds, allowed


def _ends(bounds: Bounds) -> list[tuple[Tensor, Tensor]]:
    lower, upper = pytree.tree_leaves(bounds.lower), pytree.tree_leaves(bounds.upper)
    return [(a.detach(), b.detach()) for a, b in zip(lower, upper, strict=True)]


def _compare(
    bounds: Bounds, values: Sequence[Any], allowed: Sequence[Tensor], what: str, seed: int
) -> None:
    for position, (ends, value, allow) in enumerate(
        zip(_ends(bounds), values, allowed, strict=True)
    ):
        found = excess(value, Interval(*ends), allow.to(ends[0].dtype))
        if bool((found > 0).any()):
            raise SoundnessError(
                f"{what}: output {position} leaves its bounds by {float(found.max()):.3g} beyond "
                f"declared rounding, at {int((found > 0).sum())} element(s); seed {seed}"
            )


def _far(box: Interval, point: Tensor, grad: Tensor) -> Tensor:
    """The point of a region that lies farthest along a gradient."""
    if isinstance(box, BallInterval):
        reach = box.reach.reshape((-1,) + (1,) * (grad.dim() - 1))
        return inside_ball(box.middle + reach * steepest(grad, box.norm), box)
    return torch.where(grad > 0, box.upper, torch.where(grad < 0, box.lower, point))


def _model_point(
    model: nn.Module, boxes: Sequence[Interval | Tensor], generator: torch.Generator, index: int
) -> list[Tensor]:
    """A random point, a corner, or the corner that a gradient at such a point leads to."""
    inputs = [
        sample_point(box, generator, corner=index % 3 == 1) if isinstance(box, Interval) else box
        for box in boxes
    ]
    if index % 3 != 2:
        return inputs
    moving = [i for i, box in enumerate(boxes) if isinstance(box, Interval)]
    leaves = [inputs[i].clone().requires_grad_() for i in moving]
    with torch.enable_grad():
        at = list(inputs)
        for i, leaf in zip(moving, leaves, strict=True):
            at[i] = leaf
        outputs = pytree.tree_leaves(model(*at))
        # One output element of each sample, up or down.
        total = torch.zeros((), dtype=leaves[0].dtype)
        for output in outputs:
            picks = torch.randint(-1, 2, output.shape, generator=generator)
            total = total + (output * picks).sum()
        if not total.requires_grad:
            return inputs
        grads = torch.autograd.grad(total, leaves, allow_unused=True)
    for i, grad in zip(moving, grads, strict=True):
        box = boxes[i]
        if grad is not None and isinstance(box, Interval):
            inputs[i] = _far(box, inputs[i], grad)
    return inputs
