"""`report`: the CUDA code that torch would generate, counted.

Inductor's code generation runs without a GPU. From what it generates follow the number of
launches, the bytes each kernel moves, its arithmetic, and what would spoil a step:
synchronisations, atomics, fall-backs to unfused ops, register spills. A roofline turns these
into a modelled time. **It is generated code and a model: nothing here was timed on a GPU.**
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from boundgraph.domains.interval import Interval
from boundgraph.errors import GpuReportError
from boundgraph.gpu import _inductor
from boundgraph.gpu._inductor import GraphCode
from boundgraph.gpu._machine_code import Resources, assemble, wrapper_text
from boundgraph.gpu._scheduler import SchedulerKernel
from boundgraph.training._cuda_options import cuda_options

if TYPE_CHECKING:
    from boundgraph.runtime.module import BoundProgram
    from boundgraph.training.losses import TrainingLoss
    from boundgraph.training.step import Step

DISCLAIMER = "Generated code and a model of a GPU; nothing here was timed on one."


@dataclass(frozen=True)
class Roofline:
    """A GPU as three numbers. The defaults are the data sheet of an H100 SXM, in float32.

    Args:
        bytes_per_second: of device memory.
        flops_per_second: without tensor cores, as bounds are computed.
        graph_floor: least seconds of a kernel inside a CUDA graph (an assumption).
        launch_floor: least seconds of a kernel launched by itself (an assumption).
    """

    bytes_per_second: float = 3.35e12
    flops_per_second: float = 67e12
    graph_floor: float = 2e-6
    launch_floor: float = 5e-6

    def seconds(self, kernel: SchedulerKernel, *, cuda_graph: bool) -> float:
        """The modelled time of one kernel."""
        floor = self.graph_floor if cuda_graph else self.launch_floor
        moving, computing = (
            kernel.bytes / self.bytes_per_second,
            kernel.flops / self.flops_per_second,
        )
        return max(moving, computing, floor)


@dataclass(frozen=True)
class GpuReport:
    """What was generated for a function and, where it has one, its gradient.

    Args:
        graphs: one entry per compiled graph: forward, then backward.
        roofline: the modelled device.
        result: of the run in Triton's interpreter, where asked for.
    """

    graphs: tuple[GraphCode, ...]
    roofline: Roofline = field(default_factory=Roofline)
    result: Any = None

    @property
    def kernels(self) -> tuple[SchedulerKernel, ...]:
        """What is launched or moves memory, in order."""
        every = (kernel for graph in self.graphs for kernel in graph.kernels)
        return tuple(kernel for kernel in every if kernel.kind != "none")

    @property
    def triton(self) -> int:
        """Launches of generated kernels."""
        return sum(len(re.findall(r"\w\.run\(", wrapper_text(graph.code))) for graph in self.graphs)

    @property
    def library(self) -> int:
        """Launches of cuBLAS and cuDNN, one per product (cuDNN may use more)."""
        return sum(_library_calls(graph.code) for graph in self.graphs)

    @property
    def launches(self) -> int:
        return self.triton + self.library

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Ops that run unfused through torch's dispatcher."""
        return tuple(name for graph in self.graphs for name in _fallbacks(graph.code))

    @property
    def atomics(self) -> int:
        """Atomic additions in generated kernels; their order, and so their sum, varies."""
        return sum(graph.code.count("tl.atomic_add(") for graph in self.graphs)

    @property
    def synchronisations(self) -> tuple[str, ...]:
        """Ops at which the host waits for the device."""
        return tuple(name for graph in self.graphs for name in graph.syncs)

    @property
    def partitions(self) -> tuple[int, ...]:
        """Pieces each graph falls into for CUDA graphs; 1 or 0 is one piece."""
        return tuple(graph.partitions for graph in self.graphs)

    @property
    def fused_bytes(self) -> int:
        return sum(kernel.bytes for kernel in self.kernels if kernel.kind != "library")

    @property
    def library_bytes(self) -> int:
        return sum(kernel.bytes for kernel in self.kernels if kernel.kind == "library")

    @property
    def flops(self) -> int:
        return sum(kernel.flops for kernel in self.kernels)

    def seconds(self, *, cuda_graph: bool) -> float:
        """The modelled time, with or without CUDA graphs."""
        return sum(self.roofline.seconds(k, cuda_graph=cuda_graph) for k in self.kernels)

    @property
    def cuda_graph_obstacles(self) -> tuple[str, ...]:
        """Why one CUDA graph per compiled graph cannot hold this; empty where it can."""
        found = [f"the host waits at {name}" for name in self.synchronisations]
        for number, parts in enumerate(self.partitions):
            if parts > 1:
                found.append(f"graph {number} falls into {parts} partitions")
        found += [
            f"{name} is written in place but may move" for g in self.graphs for name in g.moving
        ]
        return tuple(found)

    def resources(self) -> list[Resources]:
        """Registers, spills and shared memory of every kernel in every configuration.

        Compiles each to sm_90 machine code with the assembler of the triton package: seconds
        per kernel.
        """
        return [entry for graph in self.graphs for entry in assemble(graph.code)]

    def to_dict(self) -> dict[str, Any]:
        """The totals, for JSON."""
        return {
            "triton_kernels": self.triton,
            "library_calls": self.library,
            "launches": self.launches,
            "fused_bytes": self.fused_bytes,
            "library_bytes": self.library_bytes,
            "flops": self.flops,
            "atomics": self.atomics,
            "synchronisations": list(self.synchronisations),
            "fallbacks": list(self.fallbacks),
            "partitions": list(self.partitions),
            "modelled_us_cuda_graph": 1e6 * self.seconds(cuda_graph=True),
            "modelled_us_launches": 1e6 * self.seconds(cuda_graph=False),
            "note": DISCLAIMER,
        }


def unsupported() -> str | None:
    """Why no report can be made here, or None: an unknown torch, or no triton."""
    return _inductor.unsupported()


def report(
    fn: Callable[..., Any],
    *args: Any,
    execute: bool = False,
    options: Mapping[str, Any] | None = None,
    dynamo: Mapping[str, Any] | None = None,
    roofline: Roofline | None = None,
) -> GpuReport:
    """The CUDA code of `fn(*args)`, and of its backward where the result needs a gradient.

    Args:
        fn: traceable as one graph.
        args: CPU tensors; only shapes and dtypes matter unless `execute`.
        execute: also run the generated kernels, backward included, in Triton's interpreter
            on the CPU. Needs `TRITON_INTERPRET=1` before triton is imported; slow: use
            batches of a few samples.
        options: of Inductor, e.g. those of `training.step.cuda_options`.
        dynamo: settings of Dynamo.
        roofline: the modelled device.

    Raises:
        GpuReportError: this torch is unknown, triton is missing, or `fn` is not one graph.
    """
    reason = unsupported()
    if reason is not None:
        raise GpuReportError(reason)
    try:
        graphs, result = _inductor.generate(
            fn, args, execute=execute, options=options, dynamo=dynamo
        )
    except torch._dynamo.exc.TorchDynamoException as error:
        first = str(error).strip().splitlines()[0]
        raise GpuReportError(f"torch.compile cannot take this as one graph: {first}") from error
    return GpuReport(tuple(graphs), roofline or Roofline(), result)


def report_loss(loss_fn: TrainingLoss, x: Tensor, y: Tensor, **options: Any) -> GpuReport:
    """Forward and backward of a training loss, without the optimizer's update."""
    with _tuned_for_cuda(loss_fn):
        loss_fn.prepare(x, y)

    def compute(x: Tensor, y: Tensor, index: Tensor | None) -> Tensor:
        return loss_fn.compute(x, y, index).loss

    return report(compute, x, y, loss_fn.draw(x.shape[0]), **_with_defaults(options, loss_fn))


def report_step(step: Step, x: Tensor, y: Tensor, **options: Any) -> GpuReport:
    """A whole compiled step: losses, backward, clipping and the optimizer's update.

    Raises:
        GpuReportError: the step is not one graph; says why.
    """
    region = step.region()
    if region is None:
        raise GpuReportError(f"the step is not one graph: {step.reason}")
    with _tuned_for_cuda(step.loss_fn):
        step.loss_fn.prepare(x, y)
    index = step.loss_fn.draw(x.shape[0])
    dynamo = {"trace_autograd_ops": True}
    return report(region, x, y, index, dynamo=dynamo, **_with_defaults(options, step.loss_fn))


def report_program(
    program: BoundProgram,
    inputs: Sequence[Interval | Tensor],
    labels: Tensor | None = None,
    **options: Any,
) -> GpuReport:
    """The bounds of a compiled program, forward only.

    Args:
        program: from `boundgraph.compile`.
        inputs: an interval for each bounded input, a tensor for the others.
        labels: under a margin.
    """

    def bounds(inputs: Sequence[Interval | Tensor], labels: Tensor | None) -> list[Tensor]:
        found = program.run(inputs, labels)
        several = found if isinstance(found, tuple) else (found,)
        return [
            end
            for value in several
            for end in ((value.lower, value.upper) if isinstance(value, Interval) else (value,))
        ]

    with torch.no_grad():
        return report(bounds, list(inputs), labels, **_with_defaults(options))


@contextlib.contextmanager
def _tuned_for_cuda(loss_fn: TrainingLoss) -> Iterator[None]:
    """The loss compiles the program that it would use on a CUDA device."""
    before = getattr(loss_fn, "tune_for", None)
    loss_fn.tune_for = "cuda"  # type: ignore[assignment]
    try:
        yield
    finally:
        loss_fn.tune_for = before  # type: ignore[assignment]


def _with_defaults(
    options: Mapping[str, Any], loss_fn: TrainingLoss | None = None
) -> dict[str, Any]:
    return {"options": cuda_options(loss_fn)} | dict(options)


_CONVOLUTION_GRADIENT = re.compile(
    r"convolution_backward(?:\.default)?\(.*?\[((?:True|False)(?:, (?:True|False)){2})\]"
)


# Launches of the project's own calls (domains/interval_linear.py).
_OWN = {"interval_linear": 1, "interval_linear_backward": 2}


def _fallbacks(code: str) -> list[str]:
    body = wrapper_text(code)
    called = re.findall(r"= ((?:torch\.ops\.)?aten\.[\w.]+)\(", body)
    return [name for name in called if "convolution_backward" not in name]


def _library_calls(code: str) -> int:
    """Calls of library kernels and of the project's own.

    Each gradient that a convolution's backward gives is one.
    """
    body = wrapper_text(code)
    gradients = sum(mask.count("True") for mask in _CONVOLUTION_GRADIENT.findall(body))
    own = sum(_OWN[name] for name in re.findall(r"= torch\.ops\.boundgraph\.(\w+)\.\w+\(", body))
    return len(re.findall(r"extern_kernels\.\w+\(", body)) + gradients + own + len(_fallbacks(code))
