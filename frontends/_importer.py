"""Walk a captured fx graph and build the program that it means.

Every call is run on meta tensors beside being lowered. That gives the values of sizes,
finds shape errors at the user's line, tells which tensors share memory, and checks that
each lowering produces the shapes and dtypes that torch does.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from boundgraph.errors import Diagnostic, InternalError, UnsupportedError
from boundgraph.frontends import _aliases as aliasing
from boundgraph.frontends import _generic as generic
from boundgraph.frontends import _python as python
from boundgraph.frontends import _targets as targets
from boundgraph.frontends._emitter import Emitter, Rejected
from boundgraph.frontends._generic import NotImported
from boundgraph.frontends._python import NotDynamic
from boundgraph.ir.program import Value
from boundgraph.ir.types import evaluate_shape
from boundgraph.ops._dtypes import from_torch
from boundgraph.source import SourceSpan, user_span

_GRAD_MODE = torch.ops.higher_order.wrap_with_set_grad_enabled
_AUTOCAST = torch.ops.higher_order.wrap_with_autocast


class Importer:
    """Turns the nodes of a graph into values of a program.

    Args:
        root: the user's module, whose parameters are read by path.
        probes: batch sizes to run calls at; one, of no meaning, where shapes are static.
        module_of: module path of a node, for messages.
    """

    def __init__(
        self, root: nn.Module, probes: Sequence[int], module_of: Callable[[fx.Node], str]
    ) -> None:
        self.emitter = Emitter()
        self.env: dict[fx.Node, Any] = {}
        self.probes = tuple(probes)
        self._shadows: dict[fx.Node, list[Any]] = {}
        self._module_of = module_of
        self._paths = canonical_paths(root)
        self._counters = _batch_counters(root)
        self._owned: dict[int, tuple[Any, list[Tensor]]] = {}
        self._aliases = aliasing.Aliases()
        self._statistics: set[Value] = set()
        self._done: set[fx.Node] = set()
        self._errors: list[Diagnostic] = []
        tensors = (*root.parameters(), *root.buffers())
        self._device = tensors[0].device if tensors else torch.device("cpu")

    @property
    def dynamic(self) -> bool:
        return len(self.probes) > 1

    def bind(self, node: fx.Node, value: Any, shadows: list[Any]) -> None:
        """Give a node its value, and the same on meta tensors at each probe."""
        self.env[node] = value
        self._shadows[node] = shadows
        for tensor in aliasing.tensors_in(shadows[0]):
            self._aliases.keep(tensor)

    def bind_tensor(self, node: fx.Node, tensor: Tensor) -> None:
        """Give a node a tensor of the model, or a constant."""
        if id(tensor) not in self._owned:
            path = self._paths.get(id(tensor))
            value = self.emitter.param(path, tensor) if path else self.emitter.constant(tensor)
            shadow = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
            )
            self._owned[id(tensor)] = value, [shadow] * len(self.probes)
        self.bind(node, *self._owned[id(tensor)])

    def run(self, graph: fx.Graph, bind: Callable[[fx.Node], None]) -> Any:
        """Import all nodes.

        Args:
            graph: the captured graph.
            bind: binds a placeholder or an attribute, when it is reached.

        Returns:
            The values of the graph's output, in its containers.

        Raises:
            NotImported: this graph cannot be followed; another of the model might.
            NotDynamic: the model does not treat all batch sizes alike.
            UnsupportedError: writes that cannot be followed; all of them.
        """
        with torch.inference_mode(False), torch.no_grad():
            output = self._walk(graph, bind)
        if self._errors:
            raise UnsupportedError(_one_per_line(self._errors))
        return output

    def _walk(self, graph: fx.Graph, bind: Callable[[fx.Node], None]) -> Any:
        for node in graph.nodes:
            if node.op == "output":
                return self._values(node.args[0])
            if node.op in ("call_function", "call_method"):
                self.emitter.span = self._span(node)
                self._call(node, bind)
            elif node not in self.env:
                bind(node)
            self._done.add(node)
        raise InternalError("the captured graph has no output")

    def _span(self, node: fx.Node) -> SourceSpan | None:
        return user_span(node.stack_trace, self._module_of(node))

    def _values(self, arg: Any) -> Any:
        return _plain(fx.node.map_arg(arg, self.env.__getitem__))

    def _shadow(self, arg: Any, probe: int) -> Any:
        return _plain(fx.node.map_arg(arg, lambda node: self._shadows[node][probe]))

    def _call(self, node: fx.Node, bind: Callable[[fx.Node], None]) -> None:
        key, fn = targets.key_of(node), targets.function_of(node)
        args, kwargs = self._values(node.args), self._values(dict(node.kwargs))
        by_key = node.target in (getattr, operator.getitem)
        if key in python.ASSERTIONS and python.has(Value, args, kwargs):
            self.bind(node, None, [None] * len(self.probes))
        elif isinstance(node.target, torch._ops.HigherOrderOperator):
            self._region(node, args, bind)
        elif by_key and not isinstance(args[0], Value) and not python.has(Value, args[1:]):
            shadows = [fn(*self._shadow(node.args, i)) for i in range(len(self.probes))]
            self.bind(node, fn(*args), shadows)
        elif python.has(Value, args, kwargs):
            self._on_tensors(node, key, fn, args, kwargs)
        else:
            self._without_tensors(node, key, fn, args, kwargs)

    def _region(self, node: fx.Node, args: Any, bind: Callable[[fx.Node], None]) -> None:
        """Nodes under `torch.no_grad()` or autocast, which export keeps in a graph of their own."""
        if node.target is _GRAD_MODE:
            enabled, inner, first = args[0], args[1], 2
        elif node.target is _AUTOCAST and not args[2]:
            enabled, inner, first = True, args[4], 5
        else:
            name = str(node.target)
            raise NotImported(
                Diagnostic(
                    "autocast changes the precision that the model computes in"
                    if node.target is _AUTOCAST
                    else f"`{name}` chooses what runs by the values of tensors",
                    self.emitter.span,
                    "bound the model without autocast"
                    if node.target is _AUTOCAST
                    else "compute with tensors only, e.g. torch.where instead of a branch",
                )
            )
        outer = node.args[first:]
        inputs = [item for item in inner.graph.nodes if item.op == "placeholder"]
        for item, given in zip(inputs, outer, strict=True):
            self.bind(
                item,
                self._values(given),
                [self._shadow(given, i) for i in range(len(self.probes))],
            )
        result = self._walk(inner.graph, bind)
        if not enabled:
            result = _map_values(lambda value: self.emitter.emit("detach", value), result)
        output = inner.graph.output_node().args[0]
        self.bind(node, result, [self._shadow(output, i) for i in range(len(self.probes))])

    def _without_tensors(
        self, node: fx.Node, key: Any, fn: Callable[..., Any], args: Any, kwargs: Any
    ) -> None:
        with torch.device("meta"):
            shadows = [
                self._attempt(key, fn, *self._shadow_call(node, key, probe))
                for probe in range(len(self.probes))
            ]
        if aliasing.tensors_in(shadows[0]):
            self._lower(node, key, args, kwargs, shadows, None)
            return
        try:
            value = python.on_sizes(node.target, fn, args, kwargs)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise self._failure(key, error, ()) from error
        self.bind(node, value, shadows)

    def _on_tensors(
        self, node: fx.Node, key: Any, fn: Callable[..., Any], args: Any, kwargs: Any
    ) -> None:
        shadows: list[Any] = []
        touched: list[Tensor] = []
        for probe in range(len(self.probes)):
            shadow_args = self._shadow_call(node, key, probe)
            operands = aliasing.tensors_in(shadow_args)
            before = [tensor._version for tensor in operands]
            shadows.append(self._attempt(key, fn, *shadow_args))
            if probe == 0:
                touched = aliasing.written(operands, before)
                if targets.may_alias(key) and isinstance(shadows[0], Tensor):
                    self._aliases.keep(shadows[0])
                    self._aliases.link(shadows[0], operands[0])
            # Compared after each probe: results that grow in number must not reach the last.
            python.unify(shadows, self.probes[: len(shadows)])
        target = next((t for t in touched if t is shadows[0]), None)
        if touched and target is None:
            self._refuse_write(node, key, args, kwargs, shadows)
        elif not aliasing.tensors_in(shadows[0]):
            self.bind(node, python.metadata(key, shadows, self.probes), shadows)
        else:
            self._lower(node, key, args, kwargs, shadows, target)

    def _shadow_call(self, node: fx.Node, key: Any, probe: int) -> tuple[Any, Any]:
        args, kwargs = self._shadow(node.args, probe), self._shadow(dict(node.kwargs), probe)
        return generic.to_meta(key, args, kwargs)

    def _attempt(self, key: Any, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            return fn(*args, **kwargs)
        except Exception as error:
            raise self._failure(key, error, aliasing.tensors_in((args, kwargs))) from error

    def _failure(self, key: Any, error: Exception, operands: Sequence[Tensor]) -> Exception:
        name, span = targets.display_name(key), self.emitter.span
        if "meta tensor" in str(error):
            return NotImported(
                Diagnostic(
                    f"`{name}` reads the value of a tensor, which is not known until the model "
                    "runs",
                    span,
                    "compute with tensors only, e.g. torch.where instead of a branch",
                )
            )
        if self.dynamic:
            return NotDynamic(f"`{name}` at a batch size of {self.probes[0]}: {error}")
        shapes = ", ".join(f"{from_torch(t.dtype)}{list(t.shape)}" for t in operands)
        text = str(error).strip().split("\n")[0]
        return NotImported(
            Diagnostic(
                f"`{name}` does not accept operands {shapes}: {text}",
                span,
                "check that the example input has the shape that the model expects",
            )
        )

    def _lower(
        self,
        node: fx.Node,
        key: Any,
        args: Any,
        kwargs: Any,
        shadows: list[Any],
        target: Tensor | None,
    ) -> None:
        """Emit the ops of a call that gives tensors; `target` is the operand it writes into."""
        name = targets.display_name(key)
        kwargs = {k: v for k, v in kwargs.items() if k != "out"}
        result = self._result(node, key, args, kwargs, shadows, in_place=target is not None)
        self._check(name, result, shadows)
        self._watch_statistics(name, (args, kwargs), result)
        if target is not None:
            self._rebind(node, key, target, result)
        self.bind(node, result, shadows)

    def _result(
        self,
        node: fx.Node,
        key: Any,
        args: Any,
        kwargs: Any,
        shadows: list[Any],
        *,
        in_place: bool,
    ) -> Any:
        lower, name = targets.find_lowering(key), targets.display_name(key)
        if lower is not None and _fits(lower, args, kwargs):
            try:
                result = lower(self.emitter, *args, **kwargs)
                return _like(shadows[0], result)
            except Rejected as refusal:
                if self.emitter.depends(_values_in((args, kwargs))):
                    return self._stand_in(args, kwargs, shadows, refusal.message, refusal.help)
            except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
                raise self._bug(f"lowering `{name}` failed: {error}") from error
        shadow_call = self._shadow_call(node, key, 0)
        with torch.device("meta"):
            random = generic.is_random(targets.function_of(node), *shadow_call)
        if random:
            message = f"`{name}` draws random numbers, so no bound holds for its result"
            return self._stand_in(args, kwargs, shadows, message, None)
        if not _values_in((args, kwargs)):
            made = generic.factory(
                targets.function_of(node), args, kwargs, self._device, self.emitter.span
            )
            return self.emitter.constant(made)
        return generic.call(
            self.emitter, key, args, kwargs, shadows, self.probes, in_place=in_place
        )

    def _stand_in(
        self, args: Any, kwargs: Any, shadows: list[Any], message: str, help: str | None
    ) -> Any:
        values = _values_in((args, kwargs))
        return generic.stand_in(
            self.emitter, values, shadows, self.probes, message=message, help=help
        )

    def _check(self, name: str, result: Any, shadows: Sequence[Any]) -> None:
        """Every result must have the type that torch gives."""
        if isinstance(result, Value):
            for probe, shadow in zip(self.probes, shadows, strict=True):
                shape = evaluate_shape(result.type.shape, {python.SYMBOL: probe})
                if shape != tuple(shadow.shape) or result.type.dtype != from_torch(shadow.dtype):
                    wanted = f"{from_torch(shadow.dtype)}{list(shadow.shape)}"
                    raise self._bug(f"`{name}` became {result.type}, torch gives {wanted}")
        elif isinstance(result, tuple | list):
            for i, item in enumerate(result):
                self._check(name, item, [shadow[i] for shadow in shadows])

    def _bug(self, text: str) -> Exception:
        if self.dynamic:
            return NotDynamic(text)
        return InternalError(str(Diagnostic(f"this is a bug in BoundGraph: {text}", self.emitter.span)))

    def _watch_statistics(self, name: str, arguments: Any, result: Any) -> None:
        """Training updates running statistics, which a program never does; nor may it read them."""
        training = isinstance(result, Value) and self.emitter.op(result) == "batch_norm_train"
        read = set(_values_in(arguments))
        if training:
            self._statistics |= {v for v in read if v.name.endswith(("running_mean", "running_var"))}
        elif read & self._statistics:
            stale = ", ".join(sorted(map(str, read & self._statistics)))
            self._errors.append(
                Diagnostic(
                    f"`{name}` reads {stale} after batch normalisation has updated it",
                    self.emitter.span,
                    "call model.eval(), or use one module for each place",
                )
            )

    def _rebind(self, node: fx.Node, key: Any, target: Tensor, result: Any) -> None:
        """All names of what was written now mean the result."""
        for identity, (value, shadows) in self._owned.items():
            if self._aliases.same_group(shadows[0], target):
                if not (isinstance(value, Value) and value.name in self._counters):
                    self._refuse(
                        f"`{targets.display_name(key)}` writes into {value}, which belongs to "
                        "the model",
                        "a bound is a property of fixed weights; compute out of place",
                    )
                self._owned[identity] = result, shadows
        for other, shadows in self._shadows.items():
            related = [
                tensor
                for tensor in aliasing.tensors_in(shadows[0])
                if self._aliases.same_group(tensor, target)
            ]
            if all(aliasing.same_view(tensor, target) for tensor in related):
                if related:
                    self.env[other] = aliasing.replace_leaves(
                        self.env[other], shadows[0], target, result
                    )
            elif aliasing.is_live(other, node, self._done):
                self._refuse(
                    f"`{targets.display_name(key)}` writes into memory that another view of it "
                    "reads later: mutation through a view isn't tracked",
                    "compute out of place, e.g. x + 1 instead of x += 1",
                )

    def _refuse_write(
        self, node: fx.Node, key: Any, args: Any, kwargs: Any, shadows: list[Any]
    ) -> None:
        name = targets.display_name(key)
        message = f"`{name}` writes into part of a tensor, and such a mutation isn't tracked"
        help = "compute out of place, e.g. with torch.cat, torch.where or F.pad"
        self._refuse(message, help)
        result = self._stand_in(args, kwargs, shadows, message, help)
        self.bind(node, result, shadows)

    def _refuse(self, message: str, help: str) -> None:
        self._errors.append(Diagnostic(message, self.emitter.span, help))


def canonical_paths(root: nn.Module) -> dict[int, str]:
    """The path of each parameter and buffer, the first one of a shared tensor, by identity."""
    named = (*root.named_parameters(), *root.named_buffers())
    return {id(tensor): path for path, tensor in reversed(named)}


def _batch_counters(root: nn.Module) -> set[str]:
    """Paths of the counters that normalisation layers advance in training and never bound."""
    return {
        f"{path}.num_batches_tracked" if path else "num_batches_tracked"
        for path, module in root.named_modules(remove_duplicate=False)
        if isinstance(module, nn.modules.batchnorm._NormBase)
    }


def _plain(value: Any) -> Any:
    """fx's immutable containers as ordinary ones."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(_plain(value.start), _plain(value.stop), _plain(value.step))
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return tuple(map(_plain, value)) if type(value) is tuple else value


def _values_in(arg: Any) -> list[Value]:
    if isinstance(arg, Value):
        return [arg]
    if isinstance(arg, slice):
        arg = (arg.start, arg.stop, arg.step)
    items = arg.values() if isinstance(arg, dict) else arg
    if isinstance(arg, list | tuple | dict):
        return [value for item in items for value in _values_in(item)]
    return []


def _map_values(fn: Callable[[Value], Value], arg: Any) -> Any:
    if isinstance(arg, Value):
        return fn(arg)
    return type(arg)(_map_values(fn, item) for item in arg) if type(arg) in (list, tuple) else arg


def _like(shadow: Any, result: Any) -> Any:
    """A lowering's results in the containers that torch uses."""
    if isinstance(shadow, Tensor) == isinstance(result, Value):
        if isinstance(shadow, Tensor):
            return result
        if isinstance(shadow, tuple | list) and len(shadow) == len(result):
            return generic.rebuild(shadow, [_like(s, r) for s, r in zip(shadow, result, strict=True)])
    raise TypeError(f"it gives {type(result).__name__}, torch gives {type(shadow).__name__}")


def _fits(lower: Callable[..., Any], args: Any, kwargs: Any) -> bool:
    """Whether a lowering takes these arguments."""
    try:
        inspect.signature(lower).bind(None, *args, **kwargs)
    except TypeError:
        return False
    return True


def _one_per_line(diagnostics: list[Diagnostic]) -> list[Diagnostic]:
    seen: dict[Any, Diagnostic] = {}
    for item in diagnostics:
        where = (item.span.file, item.span.line) if item.span and item.span.line else item.message
        seen.setdefault(where, item)
    return list(seen.values())
