"""What stands for a tensor while a model is traced, and what it tells Python about itself.

Tracing runs the model's Python code. Wherever that code asks for the kind of a value
(`isinstance(out, tuple)`, `torch.is_tensor(x)`, `x.ndim`), a wrong answer would silently
take the wrong branch. So each proxy carries the value that the call has on meta tensors
of the example's shape, and answers from it what no batch size can change. Sizes are numbers
where they are the same at several batch sizes; the importer checks the calls that they came
from at others.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute

from boundgraph.frontends._preserve import TouchedError

UNKNOWN = object()
# Batch sizes at which the calls of a model are tried, beside that of the example.
BATCHES = (1, 2, 100_003)
_MANY = BATCHES[-1]
Sizes = tuple[int | tuple[int, ...], ...]
_SLOTS = {"tracer", "node", "root", "attr", "_node", "_known", "_sizes", "_values"}
# What they answer depends on the kind of a tensor alone.
_QUESTIONS = (torch.is_floating_point, torch.is_complex, torch.is_tensor)
_NUMBERS_OF_TENSORS = ("dtype", "ndim", "layout", "is_nested", "is_sparse", "is_quantized")


class Traced(fx.Proxy):
    """A value during tracing.

    Unlike fx's own proxies, `x += y` and `x[i] = y` are recorded as the writes that they are.
    """

    # What torch asks an instance of Tensor to find out if it is a parameter or buffer.
    _is_param = False
    _is_buffer = False

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # type: ignore[override]
        known = known_value(self)
        return Tensor if known is UNKNOWN else type(known)

    def __getattr__(self, name: str) -> Any:
        known = known_value(self)
        if isinstance(known, Tensor):
            if name in _NUMBERS_OF_TENSORS:
                return getattr(known, name)
            if name in ("dim", "ndimension", "is_floating_point", "is_complex"):
                return getattr(known, name)
            if name == "shape":
                return _shape(self)
            if name == "size":
                return lambda dim=None: _shape(self) if dim is None else _shape(self)[dim]
        return TracedAttribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _SLOTS:
            raise TouchedError(f"the model assigns the attribute {name!r} of a tensor")
        object.__setattr__(self, name, value)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __bool__(self) -> bool:
        known = known_value(self)
        if isinstance(known, bool) and self.node.target in _QUESTIONS:
            return known
        return super().__bool__()

    def __str__(self) -> str:
        raise TouchedError("the model turns a value that depends on its input into text")

    def __format__(self, spec: str) -> str:
        # Texts of assertions and warnings; comparing with them is beyond reason.
        return repr(self)


def _in_place(function: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def record(self: Any, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"):
    setattr(Traced, f"__i{_name}__", _in_place(getattr(operator, f"i{_name}")))


class TracedAttribute(Traced, Attribute):
    """`x.name`: a node if it is used as a value, no node if it is called."""

    def __init__(self, root: fx.Proxy, attr: str) -> None:
        Attribute.__init__(self, root, attr)


class TracedShape(TracedAttribute):
    """A shape of which some sizes depend on the batch, taken when the model asks for it.

    The others are numbers, so the model's Python code may branch on them.

    Args:
        root: the tensor.
        sizes: its sizes; a tuple holds one that depends on the batch, for each batch size tried.
    """

    def __init__(self, root: fx.Proxy, sizes: Sizes) -> None:
        super().__init__(root, "shape")
        object.__setattr__(self, "_sizes", sizes)
        # Now, since a write may change the shape of the tensor later.
        _ = self.node

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            found = tuple(self[i] for i in range(*index.indices(len(self._sizes))))
            return torch.Size(found) if all(type(size) is int for size in found) else found
        size = self._sizes[index] if isinstance(index, int) else None
        if isinstance(size, int):
            return size
        found = super().__getitem__(index)  # type: ignore[misc]
        return found if size is None else TracedSize(found, size)

    def __iter__(self) -> Iterator[Any]:
        return iter([self[i] for i in range(len(self._sizes))])

    def __len__(self) -> int:
        return len(self._sizes)

    def __eq__(self, other: Any) -> Any:
        """Decided where the answer is the same for every batch; otherwise a traced value."""
        theirs = other._sizes if issubclass(type(other), TracedShape) else other
        if not isinstance(theirs, tuple):
            return super().__eq__(other)
        # Two lines that agree at several batch sizes are one; two that do not may still cross.
        if self._sizes == theirs:
            return True
        if len(theirs) != len(self._sizes):
            return False
        pairs = zip(self._sizes, theirs, strict=True)
        if any(type(a) is type(b) is int and a != b for a, b in pairs):
            return False
        return super().__eq__(other)

    def __ne__(self, other: Any) -> Any:
        equal = self == other
        return not equal if isinstance(equal, bool) else super().__ne__(other)

    __hash__ = TracedAttribute.__hash__


class TracedSize(Traced):
    """A size that depends on the batch.

    Args:
        found: the proxy of it.
        values: what it is for each batch size tried, the last of which are 1, 2 and a large one.
    """

    def __init__(self, found: fx.Proxy, values: tuple[int, ...]) -> None:
        super().__init__(found.node, found.tracer)
        object.__setattr__(self, "_values", values)

    def __eq__(self, other: Any) -> Any:
        """False where no batch size gives that number: 2·b is never 1."""
        if type(other) is int and other not in self._values:
            at_one, at_two, at_many = self._values[-3:]
            step = at_two - at_one
            linear = step > 0 and at_many == at_one + step * (_MANY - 1)
            if linear and (other < at_one or (other - at_one) % step):
                return False
        return super().__eq__(other)  # type: ignore[misc]

    def __ne__(self, other: Any) -> Any:
        equal = self == other
        return True if equal is False else super().__ne__(other)  # type: ignore[misc]

    __hash__ = Traced.__hash__


def _shape(proxy: Traced) -> Any:
    """The shape of a traced tensor: numbers, as far as they are the same for every batch."""
    sizes = proxy.tracer.sizes(proxy.node)  # type: ignore[attr-defined]
    if sizes is None:
        return TracedAttribute(proxy, "shape")
    static = all(isinstance(size, int) for size in sizes)
    return torch.Size(sizes) if static else TracedShape(proxy, sizes)


class TracedParameter(Traced):
    """A parameter or buffer, whose shape is known."""

    def __init__(self, tracer: fx.Tracer, node: fx.Node, tensor: Tensor) -> None:
        super().__init__(node, tracer)
        object.__setattr__(self, "_known", tensor)

    @property
    def _is_param(self) -> bool:  # type: ignore[override]
        return isinstance(self._known, nn.Parameter)

    @property
    def shape(self) -> torch.Size:
        return self._known.shape  # type: ignore[no-any-return]

    def size(self, dim: int | None = None) -> Any:
        return self._known.size() if dim is None else self._known.size(dim)

    def numel(self) -> int:
        return self._known.numel()  # type: ignore[no-any-return]

    @property
    def requires_grad(self) -> bool:
        return self._known.requires_grad  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return len(self._known)


def known_value(proxy: fx.Proxy) -> Any:
    """The proxy's value on meta tensors, `UNKNOWN` where the call could not run on them."""
    attributes = object.__getattribute__(proxy, "__dict__")
    if "_known" not in attributes:
        attributes["_known"] = _find_value(attributes)
    return attributes["_known"]


def _find_value(attributes: dict[str, Any]) -> Any:
    if "attr" not in attributes:
        return attributes["tracer"].value(attributes["node"])
    root = known_value(attributes["root"])
    try:
        return UNKNOWN if root is UNKNOWN else getattr(root, attributes["attr"])
    except (AttributeError, RuntimeError):
        return UNKNOWN
