"""Join frontend, passes and runtime: from a model to its bound program."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from boundgraph.domains.regions import Box, LinfBall, LpBall, Region, norm_of
from boundgraph.domains.specs import LinearSpec, Margin, Spec
from boundgraph.errors import ConfigError, RegionError, SpecError
from boundgraph.fingerprint import fingerprint
from boundgraph.frontends.capture import Capture, capture
from boundgraph.ir.program import Program
from boundgraph.ir.types import Dim, IntervalType, Stage
from boundgraph.ops._infer import RegistryTable
from boundgraph.options import METHODS as METHODS
from boundgraph.options import TARGETS as TARGETS
from boundgraph.options import TRAINING_METHODS as TRAINING_METHODS
from boundgraph.options import CompileOptions as CompileOptions
from boundgraph.parameter_regions import ParameterRegions, with_parameter_inputs
from boundgraph.passes import Pass, PassRecord, Planning, run_pipeline
from boundgraph.passes.attach_spec import MATRIX, OFFSET
from boundgraph.passes.relax_backward import SLOPE, linear_inputs
from boundgraph.pipeline import pipeline as pipeline
from boundgraph.planning import Plan, Planned, fixed_plan
from boundgraph.runtime.module import BoundProgram, Bounds, ProgramInfo
from boundgraph.runtime.optimized import OptimizedProgram
from boundgraph.runtime.sharing import shared_names


def compile(
    model: nn.Module,
    *regions: Region | Tensor,
    method: str = "ibp",
    spec: Spec | None = None,
    frontend: str = "auto",
    training: bool = False,
    dynamic_batch: bool | None = None,
    keep_symbolic: bool = False,
    lower_only: bool = False,
    rounding: str = "nearest",
    target: str = "real",
    max_memory: int | None = None,
    keep_clean: bool = False,
    masked: bool = False,
    tune_for: str | None = None,
    tracks: bool = False,
    max_time: float | None = None,
    schedule: str = "auto",
    parameters: ParameterRegions | None = None,
    accumulate: str = "dtype",
    **named_regions: Region | Tensor,
) -> BoundProgram:
    """Compile a model into a program that bounds its outputs over input regions.

    Only the shapes and dtypes of the regions are used, and which inputs have one. The
    result takes any batch size where the model does. The model is captured, not changed,
    and its parameters are shared.

    Args:
        model: any `nn.Module` whose forward is tensor code.
        regions: one per positional input of `forward`: `Box` or `LinfBall` where the input
            is perturbed, a plain tensor where it is not.
        method: `"ibp"` (intervals); `"symbolic"` (linear dependence on the input plus error
            terms); `"mix"` (both, intersected; never looser than ibp); `"crown-ibp"`
            (backward linear bounds over interval bounds); `"crown"` (backward bounds
            throughout); `"alpha-crown"` (crown with optimised slopes; no gradient); `"auto"`
            (the tightest of these that fits `max_time` and `max_memory` by estimate, value by
            value, and never looser than ibp; see `docs/planner.md`).
        spec: `Margin(classes)` or `LinearSpec(matrix, offset)`, merged into the last layer.
        frontend: `"auto"` tries symbolic tracing, then `torch.export`.
        training: allow BatchNorm in training mode.
        dynamic_batch: require (True) or forbid (False) a dynamic batch size.
        rounding: `"nearest"` (bounds hold up to rounding of their own computation) or
            `"sound"` (they hold for the exact real network; see `docs/soundness.md`).
        tracks: under a margin and a backward method, interval bounds are a second output.
        target: with `"sound"`, `"executed"` also contains what the network computes in its
            dtype, in any order of summation.
        lower_only: backward methods bound the outputs below only (half the rows).
        max_memory: bytes that a call of the program may take for its bounds, beside inputs
            and weights; samples and rows are portioned to fit. By default 1 GiB on a CPU,
            half of what is free on a GPU. `program.run` is not portioned.
        tune_for: the kind of device, `"cpu"` or `"cuda"`, whose launch-saving passes are used;
            that of the regions where None. The program runs anywhere.
        max_time: seconds that a call may take under `method="auto"`, by estimate, for the batch
            of the regions; 10 by default. The plan is `program.info.plan`.
        schedule: of `"symbolic"`: `"forward"` carries symbols from the inputs, `"backward"` linear
            forms from the outputs, `"windows"` goes forward and keeps symbols of images on the
            windows of convolutions (rounding to nearest only); all give the same bounds up to
            rounding. `"auto"` takes the cheapest by estimate; `"mix"` has
            `"forward"`, unless it is asked for `"windows"`.
        parameters: regions of parameters by their names in `model.named_parameters()`, shaped
            like them: bounds hold for all weights in them. A call takes `parameters=`, too.
        accumulate: with `rounding="sound"` and `"ibp"`, `"float64"` takes the sums of centres in
            float64: a tenth of the extra width, and slower (`docs/soundness.md`). Other methods
            do so anyway.
        named_regions: regions of keyword inputs of `forward`; the program takes them by
            position, after the others and in the order of `forward`.

    Raises:
        CaptureError: no frontend can capture the model.
        UnsupportedError: an op has no sound bound rule; lists all, with source lines.
        ConfigError, RegionError, SpecError: an argument does not fit.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> region = LinfBall(torch.zeros(4, 2), eps=0.1)
        >>> program = compile(model, region, method="mix", spec=Margin(classes=3))
        >>> program(region, labels=torch.tensor([0, 1, 2, 0])).lower.shape
        torch.Size([4, 3])
    """
    options = CompileOptions(
        method,
        spec,
        frontend,
        training,
        dynamic_batch,
        keep_symbolic,
        lower_only,
        rounding,
        target,
        max_memory,
        keep_clean=keep_clean,
        masked=masked,
        tune_for=tune_for or _device_of(regions),
        tracks=tracks,
        max_time=max_time,
        schedule=schedule,
        accumulate=accumulate,
    )
    named = _in_forward_order(model, named_regions)
    return compile_model(model, regions, named, options, parameters or {})


def compile_model(
    model: nn.Module,
    regions: Sequence[Region | Tensor],
    named: Mapping[str, Region | Tensor],
    options: CompileOptions,
    parameters: ParameterRegions | None = None,
) -> BoundProgram:
    """Capture and compile; `named` in the order of `forward`."""
    captured = _capture(model, regions, named, options, fixed_inputs=bool(parameters))
    norms = norms_by_name(captured, regions, named)
    options = replace(options, norms=norms, batch=_batch_of(captured, (*regions, *named.values())))
    bounded = _bounded_names(captured, regions, named)
    if parameters:
        given = len(captured.program.inputs)
        captured = with_parameter_inputs(captured, parameters)
        bounded += tuple(value.name for value in captured.program.inputs[given:])
        options = replace(options, parameters=tuple(parameters))
    return compile_capture(captured, bounded, options)


def bound(
    model: nn.Module, *, method: str = "ibp", spec: Spec | None = None, **options: Any
) -> Callable[..., Bounds]:
    """Transform a model into a function from regions to bounds.

    Programs are compiled when first needed, one for each combination of input shapes and
    dtypes, of which inputs are perturbed, and of the model's structure, training modes and
    plain attributes, so that a changed model is compiled anew.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> bounds = bound(model, method="ibp")(LinfBall(torch.zeros(1, 2), eps=0.1))
        >>> bool((bounds.lower <= model(torch.zeros(1, 2))).all())
        True
    """
    _require_module(model)
    rounding, target = options.get("rounding", "nearest"), options.get("target", "real")
    CompileOptions(method, spec, rounding=rounding, target=target)
    programs: dict[Any, BoundProgram] = {}

    def bounds_of(
        *regions: Region | Tensor,
        labels: Tensor | None = None,
        parameters: ParameterRegions | None = None,
        **named: Region | Tensor,
    ) -> Bounds:
        named = _in_forward_order(model, named)
        given = (*regions, *named.values())
        key = (
            tuple(
                (isinstance(r, Tensor), norm_of(r), tuple(r.shape), _example(r).dtype)
                for r in given
            ),
            tuple(named),
            tuple(parameters or ()),
            fingerprint(model),
        )
        if key not in programs:
            chosen: dict[str, Any] = {**options, **named, "parameters": parameters}
            programs[key] = compile(model, *regions, method=method, spec=spec, **chosen)
        return programs[key](*given, labels=labels, parameters=parameters)

    return bounds_of


def compile_capture(
    captured: Capture, bounded: tuple[str, ...], options: CompileOptions
) -> BoundProgram:
    """Compile what a frontend captured; `bounded` names the perturbed inputs."""
    source = captured.program
    steps = pipeline(source, bounded, options)
    program, records = run_pipeline(source, steps, RegistryTable())
    constants = dict(captured.constants)
    if isinstance(options.spec, LinearSpec):
        output = source.outputs[0]
        dtype = {"f64": torch.float64, "f32": torch.float32}.get(output.type.dtype)
        constants[MATRIX] = _in_dtype(options.spec.matrix, dtype, options)
        if options.spec.offset is not None:
            constants[OFFSET] = _in_dtype(options.spec.offset, dtype, options)
    slopes = tuple(v.name for v in program.inputs if v.name.startswith(SLOPE))
    given = len(program.inputs) - len(slopes) - isinstance(options.spec, Margin)
    given -= 2 * len(options.norms)
    info = ProgramInfo(
        method=options.method,
        spec=options.spec,
        inputs=len(source.inputs) - len(options.parameters),
        needs_clean=given > len(source.inputs),
        norms=options.norms,
        linear=linear_inputs(program) if options.linear else (),
        slopes=slopes,
        output_tree=None if options.spec is not None else captured.output_tree,
        records=tuple(records),
        frontend=captured.frontend,
        rounding=options.rounding,
        target=options.target,
        max_memory=options.max_memory,
        plan=_plan(source, steps, records),
        parameters=options.parameters,
        shared=shared_names(captured.root, {value.name for value in program.params}),
    )
    made = OptimizedProgram if options.method == "alpha-crown" else BoundProgram
    return made(program, captured.root, constants, info)


def _plan(source: Program, steps: Sequence[Pass], records: Sequence[PassRecord]) -> Plan | None:
    """The plan that was followed, if one was made."""
    before = source
    for step, record in zip(steps, records, strict=True):
        if isinstance(step, Planning):
            return step.plan(before)
        before = record.program
    return None


def plan_of(program: BoundProgram, batch: int = 1) -> Plan:
    """The plan that a program follows, with its estimated cost, whatever its method.

    Args:
        program: compiled, not loaded: what the passes did is not saved.
        batch: samples of a call; a plan that was made for `"auto"` keeps its own.

    Raises:
        ConfigError: a program that was loaded from a file.
    """
    if program.info.plan is not None:
        made: Plan = program.info.plan
        return made
    concrete = [r.program for r in program.records if r.program.stage is Stage.CONCRETE]
    if not concrete:
        raise ConfigError("a loaded program has no record of its passes, and so no plan")
    bounded = tuple(v.name for v in program.ir.inputs if isinstance(v.type, IntervalType))
    what = Planned(bounded, batch, sound=program.info.sound, balls=bool(program.info.norms))
    return fixed_plan(concrete[-1], what, program.method)


def _in_dtype(tensor: Tensor, dtype: torch.dtype | None, options: CompileOptions) -> Tensor:
    converted = tensor.to(dtype)
    if options.sound and not bool((converted.to(tensor.dtype) == tensor).all()):
        raise SpecError(
            f"the LinearSpec ({tensor.dtype}) has entries that {dtype} cannot hold; under "
            "rounding='sound' give it in the dtype of the model"
        )
    return converted


def _example(region: Region | Tensor) -> Tensor:
    if isinstance(region, Tensor):
        return region
    if isinstance(region, LinfBall | LpBall):
        return region.center
    if isinstance(region, Box):
        return region.lower
    raise RegionError(
        f"expected Box, LinfBall, LpBall or a tensor, got {type(region).__name__}; "
        "e.g. boundgraph.LinfBall(x, eps=0.1)"
    )


def _batch_of(captured: Capture, given: Sequence[Region | Tensor]) -> int:
    """The size of the first dynamic dimension, 1 where there is none."""
    for value, region in zip(captured.program.inputs, given, strict=True):
        for size, entry in zip(_example(region).shape, value.type.shape, strict=True):
            if isinstance(entry, Dim) and (entry.coeff, entry.offset) == (1, 0):
                return max(1, int(size))
    return 1


def _device_of(regions: Sequence[Region | Tensor]) -> str:
    """The kind of device the first region is on."""
    return _example(regions[0]).device.type if regions else "cpu"


def _in_forward_order(
    model: nn.Module, named: dict[str, Region | Tensor]
) -> dict[str, Region | Tensor]:
    """Keyword inputs in the order of `forward`, which is the order a program takes them in."""
    if len(named) < 2 or not isinstance(model, nn.Module):
        return named
    order = list(inspect.signature(model.forward).parameters)
    known = [name for name in order if name in named]
    return {name: named[name] for name in (*known, *(n for n in named if n not in order))}


def _require_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be an nn.Module, got {type(model).__name__}")


def _capture(
    model: nn.Module,
    regions: Sequence[Region | Tensor],
    named: Mapping[str, Region | Tensor],
    options: CompileOptions,
    *,
    fixed_inputs: bool = False,
) -> Capture:
    _require_module(model)
    if not regions and not named:
        raise RegionError("no region given: pass one Box, LinfBall or tensor per model input")
    plain = all(isinstance(region, Tensor) for region in (*regions, *named.values()))
    if plain and not fixed_inputs:
        raise RegionError("no input is perturbed: at least one must be a Box or LinfBall")
    return capture(
        model,
        tuple(_example(region) for region in regions),
        {name: _example(region) for name, region in named.items()},
        frontend=options.frontend,
        dynamic_batch=options.dynamic_batch,
    )


def norms_by_name(
    captured: Capture,
    regions: Sequence[Region | Tensor],
    named: Mapping[str, Region | Tensor],
) -> tuple[tuple[str, float], ...]:
    """The inputs whose regions are p-balls, and p."""
    given = (*regions, *named.values())
    pairs = zip(captured.program.inputs, map(norm_of, given), strict=True)
    return tuple((value.name, norm) for value, norm in pairs if norm is not None)


def _bounded_names(
    captured: Capture,
    regions: Sequence[Region | Tensor],
    named: Mapping[str, Region | Tensor],
) -> tuple[str, ...]:
    given = (*regions, *named.values())
    inputs = captured.program.inputs
    return tuple(
        value.name
        for value, region in zip(inputs, given, strict=True)
        if not isinstance(region, Tensor)
    )
