"""From a model to a program: try symbolic tracing, then `torch.export`."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from boundgraph.errors import (
    BoundGraphError,
    CaptureError,
    ConfigError,
    Diagnostic,
    UnsupportedError,
)
from boundgraph.frontends import torch_export, torch_fx
from boundgraph.frontends._generic import NotImported, without_data
from boundgraph.frontends._importer import Importer
from boundgraph.frontends._preserve import changed_attributes, eager, plain_attributes, preserved
from boundgraph.frontends._python import SYMBOL, NotDynamic
from boundgraph.frontends._user_ops import user_ops
from boundgraph.frontends._wrapper import CallOf, call_of, input_names
from boundgraph.ir.program import Program, Value
from boundgraph.ir.types import Dim, Shape, TensorType
from boundgraph.ir.verifier import verify
from boundgraph.ops._dtypes import from_torch
from boundgraph.ops._infer import PROBES, RegistryTable
from boundgraph.source import user_span

FRONTENDS = ("torch_fx", "torch_export")
# With static shapes there is one run, and its batch size means nothing.
_STATIC = (0,)
_DRAWS = Diagnostic(
    "the model draws random numbers in its forward, so no bound holds for its output",
    help="call model.eval() first, or take the randomness out of forward",
)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Capture:
    """A captured model.

    Args:
        program: what the model computes, stage CONCRETE.
        root: the user's module: the same object, unchanged.
        constants: tensors that the program reads and that are not on the module.
        output_tree: how the outputs were nested.
        frontend: which frontend captured it.
    """

    program: Program
    root: nn.Module
    constants: dict[str, Tensor]
    output_tree: pytree.TreeSpec
    frontend: str


@dataclass(frozen=True)
class _Request:
    """What is to be captured, once checked."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    names: tuple[str, ...]
    keywords: tuple[str, ...]
    batched: tuple[bool, ...]

    def wrapper(self) -> CallOf:
        return call_of(self.model, len(self.inputs) - len(self.keywords), self.keywords)


def capture(
    model: nn.Module,
    example_inputs: Sequence[Tensor],
    kwargs: Mapping[str, Tensor] | None = None,
    *,
    frontend: str = "auto",
    dynamic_batch: bool | None = None,
) -> Capture:
    """Turn a model into a program.

    The model is left as it is, and is not run: only shapes and dtypes of the examples
    matter. Parameters stay where they are and are read by path.

    Args:
        model: the module to capture, in the mode (training or not) that it has.
        example_inputs: positional tensors for `forward`.
        kwargs: keyword tensors for `forward`.
        frontend: `"auto"` traces symbolically and falls back on `torch.export`; or the
            name of one of them.
        dynamic_batch: dimension 0 of the inputs, where it is the same for them, may have
            any size: required (True), forbidden (False), or if the model allows it (None).

    Raises:
        CaptureError: no frontend can capture the model; says why for each.
        UnsupportedError: the model writes into tensors in ways that cannot be followed.
            Or it draws random numbers in Python, of which a program would keep one draw.
        ConfigError: an argument is not what it should be.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> print(capture(model, (torch.zeros(4, 2),)).program)
        program(%input: f32[b, 2]) stage=concrete {
          param @0.weight: f32[3, 2]
          param @0.bias: f32[3]
          %linear: f32[b, 3] = linear(%input, @0.weight, @0.bias)
          %relu: f32[b, 3] = relu(%linear)
          return %relu
        }
    """
    request = _checked(model, tuple(example_inputs), dict(kwargs or {}), frontend)
    reasons: list[Diagnostic] = []
    for name in FRONTENDS if frontend == "auto" else (frontend,):
        try:
            with eager(), preserved(model) as generators, user_ops(model):
                _settle_momentum(model)
                before = plain_attributes(model)
                found = _capture_with(name, request, dynamic_batch)
                if generators.moved():
                    raise UnsupportedError(_DRAWS)
                changed = changed_attributes(before, plain_attributes(model))
                # A counter is harmless, unless the next call computes something else.
                if changed and _differ(found, _capture_with(name, request, dynamic_batch)):
                    raise UnsupportedError(_counts(changed))
                return found
        except NotImported as failure:
            reasons.append(_named(name, failure.diagnostic))
        except BoundGraphError:
            raise
        except Exception as error:
            reasons.append(_named(name, _explain(error)))
    raise CaptureError(_distinct(reasons))


def _settle_momentum(model: nn.Module) -> None:
    """Take batch normalisation with momentum=None for one with a number, until `preserved` ends.

    Its average over all batches reads a counter's value, which cannot be traced, and moves only
    running statistics, which no program does.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.training and module.momentum is None:
            module.__dict__["momentum"] = 0.1


def _differ(first: Capture, second: Capture) -> bool:
    """Whether two captures of a model, one after the other, are of different programs."""
    if first.program != second.program or first.constants.keys() != second.constants.keys():
        return True
    pairs = ((tensor, second.constants[name]) for name, tensor in first.constants.items())
    return not all(torch.equal(a, b) for a, b in pairs)


def _counts(changed: list[str]) -> Diagnostic:
    return Diagnostic(
        f"the model's forward changes {', '.join(changed)}, so what it computes may be another "
        "thing at each call, and no bound holds for all of them",
        help="take the change out of forward",
    )


def _checked(
    model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], frontend: str
) -> _Request:
    if frontend not in ("auto", *FRONTENDS):
        known = ", ".join(("auto", *FRONTENDS))
        raise ConfigError(f"unknown frontend {frontend!r}; choose one of {known}")
    if not isinstance(model, nn.Module):
        raise ConfigError(f"the model must be an nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError("a ScriptModule has no Python code to capture; pass the nn.Module itself")
    given = (*inputs, *kwargs.values())
    for item in given:
        if not isinstance(item, Tensor):
            raise ConfigError(f"example inputs must be tensors, got {type(item).__name__}")
    if not given:
        raise ConfigError("at least one example input is needed")
    names = input_names(model, len(inputs), tuple(kwargs))
    batch = next((item.shape[0] for item in given if item.ndim), None)
    batched = tuple(item.ndim > 0 and item.shape[0] == batch for item in given)
    return _Request(model, given, tuple(names), tuple(kwargs), batched)


def _capture_with(name: str, request: _Request, dynamic_batch: bool | None) -> Capture:
    run = _by_fx if name == "torch_fx" else _by_export
    prepared: dict[str, Any] = {}
    if dynamic_batch is False or not any(request.batched):
        return run(request, _STATIC, prepared)
    try:
        found = run(request, PROBES, prepared)
    except NotDynamic as reason:
        # In its own sizes the model may have an error that says more.
        static = run(request, _STATIC, prepared)
        if dynamic_batch:
            text = f"the model does not take every batch size: {reason}"
            help = "leave out dynamic_batch=True to compile for the batch size of the example"
            raise NotImported(Diagnostic(text, help=help)) from reason
        return static
    if dynamic_batch is None and _refusals(found):
        try:
            static = run(request, _STATIC, prepared)
        except (NotImported, BoundGraphError):
            return found
        return static if _refusals(static) < _refusals(found) else found
    return found


def _refusals(captured: Capture) -> int:
    return sum(node.op == "unsupported" for node in captured.program.nodes)


def _by_fx(request: _Request, probes: Sequence[int], prepared: dict[str, Any]) -> Capture:
    """Symbolic tracing needs no sizes, so one trace serves both attempts."""
    if "graph" not in prepared:
        wrapper = request.wrapper()
        batched = request.batched if len(probes) > 1 else (False,) * len(request.inputs)
        graph = torch_fx.trace(wrapper, request.inputs, batched)
        prepared["wrapper"], prepared["graph"] = wrapper, graph
    wrapper, graph = prepared["wrapper"], prepared["graph"]
    importer = Importer(request.model, probes, torch_fx.module_of)
    inputs = iter(_bind_inputs(request, importer))

    def bind(node: fx.Node) -> None:
        if node.op == "placeholder":
            importer.bind(node, *next(inputs))
        elif node.op == "get_attr":
            importer.bind_tensor(node, torch_fx.tensor_of(wrapper, node))
        else:
            raise NotImported(Diagnostic(f"tracing left the call {node.format_node()}"))

    output = importer.run(graph, bind)
    return _finished("torch_fx", request, importer, output, wrapper.output.spec)


def _by_export(request: _Request, probes: Sequence[int], prepared: dict[str, Any]) -> Capture:
    wrapper = request.wrapper()
    dynamic = len(probes) > 1
    exported = torch_export.export(wrapper, request.inputs, request.batched if dynamic else None)
    importer = Importer(request.model, probes, torch_export.module_of)
    inputs = _bind_inputs(request, importer)
    bind = torch_export.binder(exported, wrapper, importer, inputs)
    output = importer.run(exported.graph, bind)
    return _finished("torch_export", request, importer, output, wrapper.output.spec)


def _bind_inputs(request: _Request, importer: Importer) -> list[tuple[Value, list[Tensor]]]:
    bound = []
    for name, tensor, batched in zip(request.names, request.inputs, request.batched, strict=True):
        rest = tuple(tensor.shape[1:])
        dynamic = batched and importer.dynamic
        shape: Shape = (Dim(SYMBOL), *rest) if dynamic else tuple(tensor.shape)
        value = importer.emitter.input(name, TensorType(from_torch(tensor.dtype), shape))
        with torch.inference_mode(False):
            shadows = [
                torch.empty((probe, *rest), dtype=tensor.dtype, device="meta")
                if dynamic
                else without_data(tensor)
                for probe in importer.probes
            ]
        bound.append((value, shadows))
    return bound


def _finished(
    name: str, request: _Request, importer: Importer, output: Any, spec: pytree.TreeSpec
) -> Capture:
    """Check the outputs and the program; a leaf may turn out to be several tensors."""
    leaves, tree = pytree.tree_flatten(pytree.tree_unflatten(list(output), spec))
    for leaf in leaves:
        if not isinstance(leaf, Value):
            text = f"the model returns {leaf!r}, where tensors are expected"
            help = "wrap the model in a module that returns only its tensors"
            raise NotImported(Diagnostic(text, help=help))
    program, constants = importer.emitter.finish(tuple(leaves))
    for param in program.params:
        if not _PLAIN_NAME.fullmatch(param.name):
            text = f"the name {param.name!r} has characters outside A-Z a-z 0-9 _ . -"
            raise NotImported(Diagnostic(text, help="give the submodule a plain name"))
    verify(program, RegistryTable())
    return Capture(program, request.model, constants, tree, name)


def _explain(error: Exception) -> Diagnostic:
    """What went wrong while the model was traced, at the user's line."""
    span = user_span("".join(traceback.format_tb(error.__traceback__)))
    text = str(error).strip()
    by_value = torch_export.is_data_dependent(error)
    if by_value or "control flow" in text or ("Proxy" in text and "iter" in text):
        what = (
            "a branch, loop or number here depends on the value of a tensor, which is not known "
            "until the model runs"
            if by_value
            else "symbolic tracing cannot follow Python control flow here"
        )
        help = "compute with tensors only, e.g. torch.where instead of `if`"
        return Diagnostic(what, span, help)
    first = next((line for line in text.split("\n") if line.strip()), "")
    return Diagnostic(f"{type(error).__name__}: {first}", span)


def _named(frontend: str, diagnostic: Diagnostic) -> Diagnostic:
    return replace(diagnostic, message=f"{frontend} cannot capture the model: {diagnostic.message}")


def _distinct(reasons: list[Diagnostic]) -> list[Diagnostic]:
    """Two frontends that fail alike are one reason."""
    texts = {item.message.partition(": ")[2]: item for item in reversed(reasons)}
    return list(reversed(texts.values()))
