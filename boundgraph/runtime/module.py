"""`BoundProgram`: a compiled bound computation as an `nn.Module`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from boundgraph.domains.balls import BallInterval
from boundgraph.domains.enclosure import enclosure
from boundgraph.domains.interval import Interval
from boundgraph.domains.regions import Box, Region
from boundgraph.domains.specs import LinearSpec, Margin, Spec
from boundgraph.domains.symbolic import Symbolic
from boundgraph.errors import NonFiniteError, RegionError, SpecError
from boundgraph.ir.program import Program, Value
from boundgraph.ir.types import IntervalType, SymbolicType
from boundgraph.runtime.arguments import check_dtypes, check_regions
from boundgraph.runtime.arguments import flatten as flatten
from boundgraph.runtime.emit import ConstantTable, emit, parameter_lookup
from boundgraph.runtime.interpret import interpret
from boundgraph.runtime.masks import hiding
from boundgraph.runtime.precision import certified_precision, check_dtype, sound_precision
from boundgraph.runtime.rows import RowRunner, TimeLeft, Usage
from boundgraph.runtime.sharing import check_shared


@dataclass(frozen=True)
class Bounds:
    """Element-wise bounds of the model's output, or of the rows of a specification.

    Args:
        lower, upper: tensors shaped like `model(x)` (or the model's output tree of them);
            `[batch, rows]` under a specification.
    """

    lower: Any
    upper: Any

    @property
    def width(self) -> Any:
        return pytree.tree_map(lambda upper, lower: upper - lower, self.upper, self.lower)

    def __iter__(self) -> Any:
        return iter((self.lower, self.upper))


@dataclass(frozen=True)
class ProgramInfo:
    """What a `BoundProgram` knows about its own making.

    Args:
        method: the bound method.
        spec: the specification merged into it, if any.
        inputs: number of model inputs.
        needs_clean: BatchNorm statistics come from a clean batch, passed separately.
        norms: inputs that are p-balls, and p; their centres and radii follow all other inputs.
        linear: perturbed inputs whose linear forms follow the bounds in the program's outputs.
        slopes: names of the free slopes, the last inputs of an `alpha-crown` program.
        output_tree: the model's output structure, None under a specification.
        records: what each pass did.
        frontend: which frontend captured the model.
        rounding: `"nearest"` or `"sound"`.
        target: what a sound bound contains, `"real"` or `"executed"`.
        max_memory: bytes that a call may take for its bounds; None for a default.
        plan: what method `"auto"` chose, and why (`boundgraph.planning.Plan`).
        parameters: names of the parameters that have regions, in the order of their inputs, which
            follow the model's.
        shared: names of each tensor of the model that had several when the program was compiled.
    """

    method: str
    spec: Spec | None = None
    inputs: int = 1
    needs_clean: bool = False
    norms: tuple[tuple[str, float], ...] = ()
    linear: tuple[str, ...] = ()
    slopes: tuple[str, ...] = ()
    output_tree: Any = None
    records: tuple[Any, ...] = field(default=(), compare=False)
    frontend: str = ""
    rounding: str = "nearest"
    target: str = "real"
    max_memory: int | None = None
    plan: Any = field(default=None, compare=False)
    parameters: tuple[str, ...] = ()
    shared: tuple[tuple[str, ...], ...] = ()

    @property
    def sound(self) -> bool:
        return self.rounding == "sound"


class BoundProgram(nn.Module):
    """A bound computation over the parameters of the model it was compiled from.

    Calling it checks its arguments; `run` is the same computation without checks or
    synchronisation, for training steps and `torch.compile`. It holds no bounds: two calls
    never see each other.
    """

    def __init__(
        self, program: Program, model: nn.Module, constants: dict[str, Tensor], info: ProgramInfo
    ) -> None:
        super().__init__()
        self.ir = program
        self.info = info
        table = ConstantTable(constants)
        self.graph_module: fx.GraphModule = emit(program, model, table)

    @property
    def model(self) -> nn.Module:
        """The user's model: the same object, not a copy."""
        return self.graph_module.get_submodule("model")

    @property
    def constants(self) -> ConstantTable:
        table = self.graph_module.get_submodule("constants")
        assert isinstance(table, ConstantTable)
        return table

    @property
    def method(self) -> str:
        return self.info.method

    @property
    def spec(self) -> Spec | None:
        return self.info.spec

    @property
    def records(self) -> tuple[Any, ...]:
        return self.info.records

    @property
    def needs_clean(self) -> bool:
        return self.info.needs_clean

    def train(self, mode: bool = True) -> BoundProgram:
        """Set our own flag only: the model below is the user's and keeps its mode."""
        self.training = mode
        return self

    def run(
        self,
        inputs: Sequence[Interval | Tensor],
        labels: Tensor | None = None,
        clean: Sequence[Tensor] = (),
    ) -> Any:
        """Compute without checks, synchronisation or data-dependent branches.

        Args:
            inputs: per model input an `Interval` (bounded; a `BallInterval` where the program
                was compiled for a ball) or a tensor.
            labels: `[batch]` integers under a `Margin`.
            clean: the clean batch, one tensor per input, where `needs_clean`.

        Returns:
            An `Interval` (or a tensor, where the region does not reach the output), or a
            tuple of them for a model with several outputs.
        """
        outputs = self.graph_module(*flatten(self.arguments(inputs, labels, clean)))
        wrapped = tuple(
            _wrap(value, output) for value, output in zip(self.ir.outputs, outputs, strict=True)
        )
        return wrapped[0] if len(wrapped) == 1 else wrapped

    def arguments(
        self,
        inputs: Sequence[Interval | Tensor],
        labels: Tensor | None = None,
        clean: Sequence[Tensor] = (),
    ) -> list[Interval | Tensor]:
        """One value for each input of the program, free slopes apart."""
        given = [*inputs, *clean]
        if isinstance(self.info.spec, Margin):
            if labels is None:
                raise SpecError("a program with a Margin needs labels=")
            given.append(labels)
        if self.info.norms:
            by_name = dict(zip((value.name for value in self.ir.inputs), inputs, strict=False))
            for name, norm in self.info.norms:
                ball = by_name[name]
                if not isinstance(ball, BallInterval) or ball.norm != norm:
                    raise RegionError(f"input {name!r} was compiled for a ball of the {norm}-norm")
                given += [ball.middle, ball.reach]
        return given

    def forward(
        self,
        *regions: Region | Tensor,
        labels: Tensor | None = None,
        parameters: Mapping[str, Region] | None = None,
    ) -> Bounds:
        """Bounds over the regions.

        Args:
            regions: one per model input, in order; a plain tensor where the program was
                compiled with that input unperturbed.
            labels: `[batch]` integers, required under a `Margin`.
            parameters: a region for each parameter that the program was compiled with one for.

        Raises:
            RegionError: a region does not fit the model.
            SpecError: labels missing, of the wrong shape or out of range.
            NonFiniteError: weights, or the resulting bounds, are NaN, or a bound is infinite
                on the wrong side.
            ConfigError: under autocast or with half-precision weights.
        """
        inputs = self.check(*regions, labels=labels, parameters=parameters)
        with self.arithmetic(inputs):
            return self._as_bounds(self.run_within(inputs, labels, self.info.max_memory))

    def check(
        self,
        *regions: Region | Tensor,
        labels: Tensor | None = None,
        parameters: Mapping[str, Region] | None = None,
    ) -> list[Interval | Tensor]:
        """What `forward` requires of its arguments; one value for each model input."""
        inputs = self._check_regions(self._with_parameters(regions, parameters or {}))
        batch = inputs[0].any_part.shape[0] if isinstance(inputs[0], Interval) else len(inputs[0])
        if isinstance(self.spec, Margin):
            if labels is None:
                raise SpecError("a program compiled with Margin needs labels=")
            self.spec.check_labels(labels, batch)
        elif labels is not None:
            raise SpecError("labels= is only used with spec=Margin(classes)")
        if isinstance(self.spec, LinearSpec):
            self.spec.check_batch(batch)
        self._check_weights()
        if self.needs_clean:
            raise RegionError("this program was compiled for training; use run(..., clean=...)")
        return inputs

    def run_within(
        self,
        inputs: Sequence[Interval | Tensor],
        labels: Tensor | None = None,
        max_memory: int | None = None,
        usage: Usage | None = None,
        time_left: TimeLeft | None = None,
    ) -> Any:
        """What `run` computes, a few samples and rows at a time where memory asks for it.

        Under `crown` only rows of unstable elements are walked, so this is what to call for
        verification; `run` has fixed shapes, for training and `torch.compile`.

        Args:
            inputs, labels: as for `run`.
            max_memory: bytes for bounds beside inputs, weights and outputs; by default 1 GiB
                on a CPU, half of what is free on a GPU.
            usage: filled with the portions that were taken.
            time_left: seconds, asked between portions; no limit where None.

        Raises:
            MemoryBudgetError: one row of one sample exceeds an explicit `max_memory`.
            OutOfTimeError: no time is left.
        """
        flat = self.arguments(inputs, labels)
        runner = RowRunner(self.ir, parameter_lookup(self.model, self.constants))
        if runner.fits_whole(flat, max_memory):
            return self.run(inputs, labels)
        outputs = runner.run_portions(flat, max_memory, usage, time_left)
        return outputs[0] if len(outputs) == 1 else outputs

    def samples_within(self, max_memory: int | None, device: torch.device) -> int:
        """How many samples `run_within` would take at a time.

        Raises:
            ConfigError: one row of one sample exceeds an explicit `max_memory`.
        """
        runner = RowRunner(self.ir, parameter_lookup(self.model, self.constants))
        return runner.samples_within(max_memory, device)

    def arithmetic(self, inputs: Sequence[Interval | Tensor]) -> AbstractContextManager[None]:
        """The floating-point settings that the bounds rely on."""
        if not self.info.sound:
            return certified_precision(self.model)
        lookup = parameter_lookup(self.model, self.constants)
        given = [x.lower if isinstance(x, Interval) else x for x in inputs]
        upper = [x.upper for x in inputs if isinstance(x, Interval)]
        tensors = {param.name: lookup(param.name) for param in self.ir.params}
        expected = (*self.ir.params, *self.ir.inputs[: len(given)])
        for value, tensor in zip(expected, (*tensors.values(), *given), strict=True):
            check_dtype(value, tensor)
        return sound_precision(self.model, (*tensors.values(), *given, *upper))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the program and the tensors that it reads; `boundgraph.load` reads it back.

        Raises:
            CheckpointError: the file cannot be written; an old one is unchanged.
        """
        # The module that rebuilds programs imports this one.
        from boundgraph.runtime.saved import save

        save(self, path)

    def interpret(self, *regions: Region | Tensor, labels: Tensor | None = None) -> Bounds:
        """The same bounds by the reference interpreter, node by node."""
        values = self.arguments(self._check_regions(regions), labels)
        lookup = parameter_lookup(self.model, self.constants)
        outputs = interpret(self.ir, values, lookup)
        return self._as_bounds(outputs[0] if len(outputs) == 1 else outputs)

    def trace_bounds(
        self, *regions: Region | Tensor, labels: Tensor | None = None
    ) -> dict[str, Any]:
        """Every value of the program by name, for inspection."""
        values = self.arguments(self._check_regions(regions), labels)
        found: dict[str, Any] = {}
        interpret(
            self.ir,
            values,
            parameter_lookup(self.model, self.constants),
            on_node=lambda node, result: found.update({node.result.name: result}),
        )
        return found

    def _as_bounds(self, outputs: Any) -> Bounds:
        parts = outputs if isinstance(outputs, tuple) else (outputs,)
        ends = [(p.lower, p.upper) if isinstance(p, Interval) else (p, p) for p in parts]
        for value, (lower, upper) in zip(self.ir.outputs, ends, strict=True):
            if bool(torch.isnan(lower).any() | torch.isnan(upper).any()):
                raise NonFiniteError(
                    f"the bounds of {value} contain NaN, so nothing is bounded. {self._first_nan()}"
                )
            # No real number is that large: the arithmetic overflowed on both ends.
            if bool((lower == torch.inf).any() | (upper == -torch.inf).any()):
                raise NonFiniteError(
                    f"the bounds of {value} overflowed: a lower end is +inf or an upper end −inf. "
                    f"{self._first_nan()}"
                )
        lowers, uppers = zip(*ends, strict=True)
        if self.info.output_tree is None:
            return Bounds(lowers[0], uppers[0])
        return Bounds(
            pytree.tree_unflatten(list(lowers), self.info.output_tree),
            pytree.tree_unflatten(list(uppers), self.info.output_tree),
        )

    def _first_nan(self) -> str:
        asked = [node for node in self.ir.nodes if node.op == "interval.defined"]
        if asked:
            names = ", ".join(
                f"`{node.attrs['function']}` may be undefined at "
                f"{node.span.where() if node.span else node.result.name}"
                for node in asked
            )
            return f"In this region {names}, or the dtype overflowed"
        return (
            "Call trace_bounds(...) to see the first value that is not finite; overflow of the "
            "dtype is the usual cause"
        )

    def _check_weights(self) -> None:
        check_shared(self.model, self.info.shared)
        for param in self.ir.params:
            tensor = parameter_lookup(self.model, self.constants)(param.name)
            if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
                continue
            # Of what a mask hides no bound is asked.
            hides = param.name in hiding(self.ir)
            if not hides or bool((torch.isnan(tensor) | (tensor == torch.inf)).any()):
                raise NonFiniteError(
                    f"the model's {param.name} holds NaN or infinity; no bound can be computed"
                )

    def _with_parameters(
        self, regions: Sequence[Region | Tensor], parameters: Mapping[str, Region]
    ) -> tuple[Region | Tensor, ...]:
        """Regions of parameters behind those of inputs, a copy for each sample."""
        wanted = self.info.parameters
        if set(parameters) != set(wanted):
            given = ", ".join(parameters) or "none"
            raise RegionError(
                f"the program was compiled with regions of the parameters {', '.join(wanted)}; "
                f"parameters= has {given}"
                if wanted
                else f"the program was compiled without regions of parameters, got {given}"
            )
        if not wanted:
            return tuple(regions)
        if len(regions) != self.info.inputs:
            raise RegionError(f"{len(regions)} regions given, the model takes {self.info.inputs}")
        copies = self.weight_boxes(parameters, regions[0].shape[0])
        return (*regions, *(Box(box.lower, box.upper) for box in copies))

    def weight_boxes(self, parameters: Mapping[str, Region], batch: int) -> list[Interval]:
        """What `run` takes behind the model's inputs: regions of parameters, one copy a sample."""
        found = []
        for name in self.info.parameters:
            region = parameters[name]
            box = enclosure(region) if self.info.sound else region.interval()
            shape = (batch, *box.lower.shape)
            found.append(Interval(box.lower.expand(shape), box.upper.expand(shape)))
        return found

    def _check_regions(self, regions: Sequence[Region | Tensor]) -> list[Interval | Tensor]:
        expected = self.ir.inputs[: self.info.inputs + len(self.info.parameters)]
        corners = enclosure if self.info.sound else None
        checked = check_regions(expected, regions, dict(self.info.norms), corners)
        # Sound programs hold the rounding of the dtype that they were compiled for.
        lookup = parameter_lookup(self.model, self.constants)
        weights = () if self.info.sound else (lookup(param.name) for param in self.ir.params)
        check_dtypes(expected, regions, weights)
        return checked


def _wrap(value: Value, output: Any) -> Any:
    if isinstance(value.type, IntervalType):
        return Interval(*output)
    if isinstance(value.type, SymbolicType):
        return Symbolic(*output)
    return output
