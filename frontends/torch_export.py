"""`torch.export`: slower than symbolic tracing, and follows Python control flow on shapes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim as ExportDim
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.overrides import TorchFunctionMode

from boundgraph.errors import Diagnostic, InternalError
from boundgraph.frontends._generic import NotImported
from boundgraph.frontends._importer import Importer
from boundgraph.frontends._paths import path_problem
from boundgraph.frontends._preserve import TouchedError
from boundgraph.frontends._python import SYMBOL, NotDynamic
from boundgraph.frontends._wrapper import CallOf, strip
from boundgraph.ir.program import Value

# Any size that torch.export does not treat as special (0 and 1 are).
_EXAMPLE_BATCH = 3
_DATA_DEPENDENT = ("data-dependent", "DataDependent", "unbacked")


def export(
    wrapper: CallOf, inputs: Sequence[Tensor], batched: Sequence[bool] | None
) -> ExportedProgram:
    """The model as torch.export sees it, before decomposition.

    Args:
        wrapper: a call of the model.
        inputs: examples; only shapes and dtypes are read.
        batched: which of them have the batch as dimension 0; None for static shapes.

    Raises:
        NotDynamic: export, or the model, treats batch sizes differently.
        Exception: whatever export raises where it cannot follow the model.
    """
    if batched is None:
        return _export(wrapper, tuple(inputs), None)
    examples = tuple(
        torch.zeros((_EXAMPLE_BATCH, *item.shape[1:]), dtype=item.dtype, device=item.device)
        if dynamic
        else item
        for item, dynamic in zip(inputs, batched, strict=True)
    )
    batch = ExportDim(SYMBOL)
    shapes = tuple({0: batch} if dynamic else None for dynamic in batched)
    try:
        exported = _export(wrapper, examples, shapes)
    except Exception as error:
        raise NotDynamic(f"torch.export: {str(error).strip()}") from error
    for bounds in exported.range_constraints.values():
        if bounds.lower > 2 or bounds.upper < 2**31:
            raise NotDynamic(f"torch.export limits the batch size to {bounds}")
    problem = path_problem(wrapper, examples, batched)
    if problem is not None:
        raise NotDynamic(problem)
    return exported


def _export(wrapper: CallOf, inputs: tuple[Tensor, ...], shapes: Any) -> ExportedProgram:
    with _quiet(), _DataWrites():
        return torch.export.export(wrapper, inputs, dynamic_shapes=shapes, strict=False)


class _DataWrites(TorchFunctionMode):
    """Refuses `x.data = y`, which torch.export leaves out of its graph without a word."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == torch.Tensor.data.__set__:  # type: ignore[attr-defined]
            raise TouchedError("the model assigns the attribute 'data' of a tensor")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the logs, and the graphs on stderr, of an export that is allowed to fail."""
    # A disabled logger still hands on what its children log, so the handlers are silenced.
    handlers = list(logging.getLogger("torch").handlers)
    for handler in handlers:
        handler.addFilter(_nothing)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False


def binder(
    exported: ExportedProgram,
    wrapper: CallOf,
    importer: Importer,
    inputs: Sequence[tuple[Value, list[Tensor]]],
) -> Callable[[fx.Node], None]:
    """Binds the placeholders of an exported graph: inputs, parameters, buffers, constants."""
    signature = exported.graph_signature
    specs = {spec.arg.name: spec for spec in signature.input_specs}
    given = iter(inputs)
    tensors: dict[str, Tensor] = dict(wrapper.named_parameters(remove_duplicate=False))
    tensors.update(wrapper.named_buffers(remove_duplicate=False))

    def bind(node: fx.Node) -> None:
        if node.op == "get_attr":
            module = getattr(node.graph.owning_module, str(node.target))
            importer.bind(node, module, [module] * len(importer.probes))
            return
        spec = specs[node.name]
        if spec.kind is InputKind.USER_INPUT:
            importer.bind(node, *next(given))
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            importer.bind_tensor(node, tensors[spec.target])
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            importer.bind_tensor(node, _constant(exported, wrapper, spec.target))
        else:
            raise NotImported(Diagnostic(f"the model reads {spec.target}, a {spec.kind.name}"))

    return bind


def _constant(exported: ExportedProgram, wrapper: CallOf, target: str) -> Tensor:
    """A plain tensor attribute of the model, itself, or a tensor made in `forward`."""
    found: Any = wrapper
    for part in target.split("."):
        found = getattr(found, part, None)
    constant = exported.constants[target]
    if isinstance(found, Tensor):
        return found
    if not isinstance(constant, Tensor):
        raise InternalError(f"the exported constant {target} is {type(constant).__name__}")
    return constant


def module_of(node: fx.Node) -> str:
    """Path of the module that was running."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values() if not entry[0].startswith("_empty")]
    return strip(paths[-1].removeprefix("L['self'].")) if paths else ""


def is_data_dependent(error: BaseException) -> bool:
    """Whether an export failed on a branch or number that depends on a tensor's value."""
    names = [kind.__name__ for kind in type(error).__mro__]
    text = " ".join((*names, str(error)))
    return any(word in text for word in _DATA_DEPENDENT)
