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

from boundgraph.errors import Diagnostic, InternalError
from boundgraph.frontends import _generic as generic
from boundgraph.frontends import _nests as nests
from boundgraph.frontends import _python as python
from boundgraph.frontends import _targets as targets
from boundgraph.frontends._emitter import Emitter, Rejected
from boundgraph.frontends._generic import NotImported
from boundgraph.frontends._python import NotDynamic
from boundgraph.frontends._writes import Writes, written
from boundgraph.ir.program import Value
from boundgraph.ir.types import evaluate_shape
from boundgraph.ops._contraction import expand_to
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
        self._writes = Writes(root, self.env, self._shadows, self.emitter)
        tensors = (*root.parameters(), *root.buffers())
        self._device = tensors[0].device if tensors else torch.device("cpu")

    @property
    def dynamic(self) -> bool:
        return len(self.probes) > 1

    def bind(self, node: fx.Node, value: Any, shadows: list[Any]) -> None:
        """Give a node its value, and the same on meta tensors at each probe."""
        self.env[node] = value
        self._shadows[node] = shadows
        self._writes.keep(shadows[0])

    def bind_tensor(self, node: fx.Node, tensor: Tensor) -> None:
        """Give a node a tensor of the model, or a constant."""
        owned = self._writes.owned
        if id(tensor) not in owned:
            path = self._writes.paths.get(id(tensor))
            value = self.emitter.param(path, tensor) if path else self.emitter.constant(tensor)
            owned[id(tensor)] = value, [generic.without_data(tensor)] * len(self.probes)
        self.bind(node, *owned[id(tensor)])

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
        self._writes.raise_refused()
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
            self._writes.done.add(node)
        raise InternalError("the captured graph has no output")

    def _span(self, node: fx.Node) -> SourceSpan | None:
        return user_span(node.stack_trace, self._module_of(node))

    def _values(self, arg: Any) -> Any:
        return nests.plain(fx.node.map_arg(arg, self.env.__getitem__))

    def _shadow(self, arg: Any, probe: int) -> Any:
        return nests.plain(fx.node.map_arg(arg, lambda node: self._shadows[node][probe]))

    def _call(self, node: fx.Node, bind: Callable[[fx.Node], None]) -> None:
        key, fn = targets.key_of(node), targets.function_of(node)
        args, kwargs = self._values(node.args), self._values(dict(node.kwargs))
        if str(getattr(node.target, "__module__", "")).startswith("torch._functorch"):
            # Not to be run: torch would go on mapping after this capture has ended.
            raise NotImported(
                Diagnostic(
                    "torch.vmap and the transforms of torch.func have no bound rule",
                    self.emitter.span,
                    "write the step for a whole batch, e.g. with torch.einsum",
                )
            )
        if node.target is getattr and isinstance(args[0], Value):
            # The name is part of the key.
            args = args[:1]
        by_key = node.target in (getattr, operator.getitem)
        if key in python.ASSERTIONS and nests.has(Value, args, kwargs):
            self.bind(node, None, [None] * len(self.probes))
        elif isinstance(node.target, torch._ops.HigherOrderOperator):
            self._region(node, args, bind)
        elif by_key and not isinstance(args[0], Value) and not nests.has(Value, args[1:]):
            shadows = [fn(*self._shadow(node.args, i)) for i in range(len(self.probes))]
            self.bind(node, fn(*args), shadows)
        elif self._assigns(node, args):
            self._assign(node, args)
        elif nests.has(Value, args, kwargs):
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
            result = nests.map_values(lambda value: self.emitter.emit("detach", value), result)
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
        if nests.tensors_in(shadows[0]):
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
        into: Any = None
        for probe in range(len(self.probes)):
            shadow_args = self._shadow_call(node, key, probe)
            operands = nests.tensors_in(shadow_args)
            before = [tensor._version for tensor in operands]
            shadows.append(self._attempt(key, fn, *shadow_args))
            if probe == 0:
                touched = written(operands, before)
                into = shadow_args[0][0] if key is operator.setitem else None
                if targets.may_alias(key) and isinstance(shadows[0], Tensor):
                    self._writes.link(shadows[0], operands[0])
            # Compared after each probe: results that grow in number must not reach the last.
            python.unify(shadows, self.probes[: len(shadows)])
        target = next((t for t in touched if t is shadows[0]), None)
        if len(touched) == 1 and touched[0] is into:
            self._overwrite(node, key, args)
        elif touched and target is None:
            self._refuse_write(node, key, args, kwargs, shadows)
        elif not nests.tensors_in(shadows[0]):
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
            raise self._failure(key, error, nests.tensors_in((args, kwargs))) from error

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
        name, span = targets.display_name(key), self.emitter.span
        operands = nests.values_in((args, kwargs))
        if generic.mixed_dtypes(name, operands):
            types = ", ".join(str(value.type) for value in operands)
            raise NotImported(
                Diagnostic(
                    f"`{name}` does not accept operands {types}: their dtypes differ",
                    span,
                    "give the regions the dtype of the model, e.g. LinfBall(x.float(), ...)",
                )
            )
        if name == "squeeze" and self.dynamic and python.drops_batch(args, kwargs):
            raise NotDynamic("`squeeze` drops the batch dimension of a batch of one")
        kwargs = {k: v for k, v in kwargs.items() if k != "out"}
        result = self._result(node, key, args, kwargs, shadows, in_place=target is not None)
        self._check(name, result, shadows)
        trains = isinstance(result, Value) and self.emitter.op(result) == "batch_norm_train"
        self._writes.watch_statistics(name, nests.values_in((args, kwargs)), trains, span)
        if target is not None:
            self._writes.rebind(node, name, shadows, result, span)
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
                return nests.same_nest(shadows[0], result)
            except Rejected as refusal:
                if self.emitter.depends(nests.values_in((args, kwargs))):
                    return self._stand_in(args, kwargs, shadows, refusal.message, refusal.help)
            except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
                raise self._bug(f"lowering `{name}` failed: {error}") from error
        shadow_call = self._shadow_call(node, key, 0)
        with torch.device("meta"):
            message = generic.impurity(name, targets.function_of(node), *shadow_call)
        if message is not None:
            return self._stand_in(args, kwargs, shadows, message, None)
        if not nests.values_in((args, kwargs)):
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
        values = nests.values_in((args, kwargs))
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
        return InternalError(
            str(Diagnostic(f"this is a bug in BoundGraph: {text}", self.emitter.span))
        )

    def _assigns(self, node: fx.Node, args: Any) -> bool:
        """Whether a node is `x[index] = value` with a view `x[index]`."""
        called = node.target is operator.setitem and len(args) == 3
        return called and isinstance(args[0], Value) and nests.simple_index(node.args[1])

    def _assign(self, node: fx.Node, args: Any) -> None:
        """`x[index] = value`, a write through the view `x[index]`."""
        views: list[Any] = []
        for probe in range(len(self.probes)):
            wholes, index, given = self._shadow(node.args, probe)
            views.append(self._attempt(operator.getitem, operator.getitem, (wholes, index), {}))
            python.unify(views, self.probes[: len(views)])
            # Finds what does not broadcast, and elements that have several places.
            self._attempt(operator.setitem, operator.setitem, (wholes, index, given), {})
        shape = python.unify([tuple(view.shape) for view in views], self.probes)
        dtype = views[0].dtype
        value = args[2]
        if not isinstance(value, Value):
            value = self.emitter.constant(torch.tensor(value, dtype=dtype))
        if value.type.dtype != from_torch(dtype):
            shadows = [None] * len(self.probes)
            self._writes.refuse(
                f"an assignment converts {value.type.dtype} to {from_torch(dtype)}",
                "convert the value first, with .to()",
                self.emitter.span,
            )
            self.bind(node, None, shadows)
            return
        lead = len(value.type.shape) - len(shape)
        if lead > 0:
            value = self.emitter.emit("reshape", value, shape=value.type.shape[lead:])
        value = expand_to(self.emitter, value, shape)
        self._writes.rebind(node, "setitem", views, value, self.emitter.span)
        self.bind(node, None, [None] * len(self.probes))

    def _overwrite(self, node: fx.Node, key: Any, args: Any) -> None:
        """`x[index] = value` where the index is no view: all of x is written anew."""
        wholes = [self._shadow(node.args, probe)[0] for probe in range(len(self.probes))]
        result = self._result(node, key, args, {}, wholes, in_place=True)
        self._check("setitem", result, wholes)
        self._writes.rebind(node, "setitem", wholes, result, self.emitter.span)
        self.bind(node, None, [None] * len(self.probes))

    def _refuse_write(
        self, node: fx.Node, key: Any, args: Any, kwargs: Any, shadows: list[Any]
    ) -> None:
        name = targets.display_name(key)
        message = f"`{name}` writes into part of a tensor, and such a mutation isn't tracked"
        help = "compute out of place, e.g. with torch.cat, torch.where or F.pad"
        self._writes.refuse(message, help, self.emitter.span)
        result = self._stand_in(args, kwargs, shadows, message, help)
        self.bind(node, result, shadows)


def _fits(lower: Callable[..., Any], args: Any, kwargs: Any) -> bool:
    """Whether a lowering takes these arguments."""
    try:
        inspect.signature(lower).bind(None, *args, **kwargs)
    except TypeError:
        return False
    return True
