"""Ops of the user's own: functions and modules that a program keeps whole.

`register_op` gives a function or a class of modules a bound rule, `leaf` one module, and
`freeze` says that a part never depends on a perturbed input. In a program each is one op:
its operands are the tensors among a call's arguments and, for a module, its parameters and
buffers, which stay the user's own and live. All other arguments are attributes.

While a model is captured its calls go to a recorder (`recording`); otherwise a registered
function runs as if nobody had registered it.
"""

from __future__ import annotations

import contextvars
import inspect
import itertools
import re
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_form import Lines
from boundgraph.errors import ConfigError
from boundgraph.ops import _spec
from boundgraph.ops._spec import Kind, OpSpec
from boundgraph.ops._spelling import spellings
from boundgraph.ops._whole import Rules, identity_of, runner
from boundgraph.ops.constant import encode

Recorder = Callable[["Registration", nn.Module | None, Any, Any], Any]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_recorder: contextvars.ContextVar[Recorder | None] = contextvars.ContextVar(
    "recorder", default=None
)
_classes: dict[type[nn.Module], Registration] = {}
_leaves: weakref.WeakKeyDictionary[nn.Module, Registration] = weakref.WeakKeyDictionary()
_changes = itertools.count(1)
_generation = 0


def generation() -> int:
    """A number that changes whenever an op of the user's is added or removed."""
    return _generation


@dataclass(frozen=True, eq=False)
class Registration:
    """A registered function, class of modules or module; calling it calls the function.

    It is a context manager that removes the registration at the end of the block.

    Args:
        name: of its op, as `boundgraph ops` and programs print it.
        target: what was registered.
        spec: the op.
    """

    name: str
    target: Any
    spec: OpSpec

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function computes; while a model is captured, a node of its program."""
        if not torch.compiler.is_dynamo_compiling():
            record = _recorder.get()
            if record is not None and _spec.get(self.name) is self.spec:
                return record(self, None, args, kwargs)
        return self.target(*args, **kwargs)

    def remove(self) -> None:
        """Forget the op; a second call does nothing. Models are then captured without it."""
        global _generation
        if _spec.get(self.name) is not self.spec:
            return
        _spec.unregister(self.name)
        _generation = next(_changes)
        if isinstance(self.target, nn.Module):
            _leaves.pop(self.target, None)
        elif isinstance(self.target, type):
            _classes.pop(self.target, None)

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.remove()


def register_op(
    target: Any = None,
    *,
    interval: Callable[..., Interval] | None = None,
    relaxation: Callable[..., Lines] | None = None,
    elementwise: bool = False,
    increasing: bool = False,
    bounded: tuple[int, ...] = (0,),
    name: str | None = None,
    ulps: float | None = None,
    magnitude: Callable[..., Tensor] | None = None,
    partial: bool = False,
    sample: Callable[..., Any] | None = None,
) -> Any:
    """Give a function, or a class of modules, a bound rule.

    Call the result in place of the function, which `@register_op(...)` arranges; functions of
    torch and custom operators of `torch.library` are also found under their own names. Modules
    of a registered class (not of subclasses) are kept whole wherever a model has them.

    Rules are tensor code without branches on values. They take the arguments of a call, with an
    `Interval` for each tensor that may depend on a perturbed input; for a module, the module
    comes first, and its parameters are read from it: `rule(module, x)`.

    Args:
        target: a function of tensors that gives one tensor, or an `nn.Module` class. It acts
            on each sample (each index of dimension 0) by itself and draws no random numbers.
        interval: encloses the result over intervals of the operands.
        relaxation: `(x: Interval, ...) -> Lines`, two lines that enclose an elementwise
            function over x; without it the universal fallback makes them from `interval`.
        elementwise: each element of the result is a function of that element of the only tensor.
        increasing: an elementwise function that never falls; needs no `interval`.
        bounded: which of the tensors among the arguments may depend on a perturbed input.
        name: of the op; that of the function where absent.
        ulps: error of a computed result in units of roundoff; it is what `check_op` allows.
            32 where None. `rounding="sound"` refuses registered ops in any case.
        magnitude: size of the terms that may cancel in the function, of the absolute values of
            its tensors; `check_op` allows 64 roundings of that size.
        partial: the function gives NaN outside of its domain.
        sample: draws a case for `check_op`: `(rng) -> OpCase` with keyword arguments of the
            call as attributes; for a class of modules `(rng) -> (module, OpCase)`.

    Returns:
        A `Registration`; without `target`, a decorator.

    Raises:
        ConfigError: a name that is taken or no name, a missing rule, or a target that has one.

    Example:
        >>> def cube(x):
        ...     return x * x * x
        >>> with register_op(cube, elementwise=True, increasing=True, ulps=2) as op:
        ...     op.name
        'cube'
    """
    if target is None:
        options = {k: v for k, v in locals().items() if k != "target"}
        return lambda function: register_op(function, **options)
    if isinstance(target, nn.Module):
        raise ConfigError("register_op takes a function or a class; for one module use bg.leaf")
    if isinstance(target, type) and not issubclass(target, nn.Module):
        raise ConfigError(f"{target.__name__} is a class, but not of nn.Module")
    if not callable(target):
        raise ConfigError(f"register_op takes a function or a module class, got {target!r}")
    name = _checked_name(name, target)
    _check_rules(name, interval, relaxation, elementwise=elementwise, increasing=increasing)
    run = runner(None if isinstance(target, type) else target)
    rules = Rules(interval, relaxation, bounded, partial, sample, ulps, magnitude)
    return _add(Registration(name, target, rules.spec(name, run, elementwise=elementwise)))


def leaf(
    module: nn.Module,
    *,
    interval: Callable[..., Interval] | None = None,
    relaxation: Callable[..., Lines] | None = None,
    elementwise: bool = False,
    increasing: bool = False,
    bounded: tuple[int, ...] = (0,),
    name: str | None = None,
    ulps: float | None = None,
    magnitude: Callable[..., Tensor] | None = None,
    partial: bool = False,
    sample: Callable[..., Any] | None = None,
) -> Registration:
    """Keep one module whole, with a bound rule of its own.

    As `register_op`, but for this module alone: copies of it are not meant. `sample` draws the
    operands of a call; the parameters are those of the module.

    Raises:
        ConfigError: as for `register_op`, or the module has a rule already.
    """
    _checked_module(module, "leaf")
    name = _checked_name(name, module)
    _check_rules(name, interval, relaxation, elementwise=elementwise, increasing=increasing)
    rules = Rules(interval, relaxation, bounded, partial, sample, ulps, magnitude, module)
    spec = rules.spec(name, runner(None), elementwise=elementwise)
    found: Registration = _add(Registration(name, module, spec))
    return found


def freeze(target: Any, *, name: str | None = None) -> Registration:
    """Keep a function or module whole and without bounds: a constant of the perturbation.

    It runs as it is and is not traced. That is sound only where none of its operands depends on
    a perturbed input, parameters among them; where one does, compiling is refused. So a frozen
    part cannot weaken a certificate. Gradients flow through it.

    Args:
        target: a function of tensors that gives one tensor, or a module.
        name: of the op; that of the function or of the module's class where absent.

    Returns:
        A `Registration`; call it in place of a function. A module is found by itself.

    Raises:
        ConfigError: the name is taken, or the module has a rule already.
    """
    if isinstance(target, nn.Module):
        _checked_module(target, "freeze")
    elif not callable(target) or isinstance(target, type):
        raise ConfigError(f"freeze takes a function or a module, got {target!r}")
    name = _checked_name(name, target)
    run = runner(None if isinstance(target, nn.Module) else target)
    spec = OpSpec(
        name,
        Kind.CONSTANT,
        run,
        boundable=(),
        refusal=f"`{name}` is frozen, but depends on a perturbed input here: a bound that took "
        "it for a constant would be wrong",
        way_out="give it only values that no region reaches, or give it a rule with "
        "bg.register_op or bg.leaf instead of bg.freeze",
        summary="frozen: runs as it is, of values without bounds",
    )
    found: Registration = _add(Registration(name, target, spec))
    return found


def registration_of(module: nn.Module) -> Registration | None:
    """What keeps a module whole, or None."""
    return _leaves.get(module) or _classes.get(type(module))


@contextmanager
def recording(record: Recorder) -> Iterator[None]:
    """Send calls of registered functions to `record` until the block ends, in this context."""
    token = _recorder.set(record)
    try:
        yield
    finally:
        _recorder.reset(token)


def _checked_name(name: Any, target: Any) -> str:
    found = name if name is not None else getattr(target, "__name__", type(target).__name__)
    if not isinstance(found, str) or not _NAME.fullmatch(found):
        raise ConfigError(
            f"the name of an op is a word of letters, digits and _, got {found!r}; pass name="
        )
    known = _spec.get(found)
    if known is not None and name is None and not known.user:
        # An op of ours that the user need not know of, `blend` say, takes no name away.
        found = f"user_{found}"
        known = _spec.get(found)
    if known is not None:
        raise ConfigError(
            f"an op {found!r} is registered already; pass another name=, or remove() the first"
        )
    return found


def _checked_module(module: Any, what: str) -> None:
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{what} takes a module, got {type(module).__name__}")
    known = registration_of(module)
    if known is not None:
        raise ConfigError(f"the module is registered already, as {known.name!r}; remove() that")


def _check_rules(
    name: str, interval: Any, relaxation: Any, *, elementwise: bool, increasing: bool
) -> None:
    if increasing and not elementwise:
        raise ConfigError(f"{name!r}: increasing=True is about elementwise functions")
    if interval is None and not increasing:
        raise ConfigError(
            f"{name!r} needs an interval rule: pass interval=, or increasing=True for an "
            "elementwise function that never falls"
        )
    if relaxation is not None and not elementwise:
        raise ConfigError(f"{name!r}: a relaxation needs elementwise=True")


def _add(made: Registration) -> Any:
    global _generation
    target = made.target
    targets = _torch_targets(target)
    for known in targets:
        if _spec.lowering(known) is not None:
            raise ConfigError(f"{made.name!r}: torch's function has bound rules already")
    if isinstance(target, type) and target in _classes:
        raise ConfigError(f"{target.__name__} is registered already; remove() that first")
    _spec.register(made.spec)
    _generation = next(_changes)
    if isinstance(target, nn.Module):
        _leaves[target] = made
    elif isinstance(target, type):
        _classes[target] = made
    for known in targets:
        _spec.lowers(known, op=made.name)(_lowering_of(made))
    return made


def _torch_targets(target: Any) -> tuple[Hashable, ...]:
    """What torch's own functions are called in captured graphs; nothing for other functions."""
    if isinstance(target, nn.Module):
        return ()
    overload = getattr(target, "_opoverload", target)
    if isinstance(overload, OpOverload):
        return (overload, overload.overloadpacket)
    if inspect.isbuiltin(target) or str(getattr(target, "__module__", "")).startswith("torch."):
        return (target, *(t for t in spellings(target.__name__) if t is not target))
    return ()


def _lowering_of(made: Registration) -> Callable[..., Any]:
    def lower(b: _spec.Lowering, *args: Any, **kwargs: Any) -> Any:
        return emit_call(b, made, None, args, kwargs, ())

    return lower


def emit_call(
    b: _spec.Lowering,
    made: Registration,
    module: nn.Module | None,
    args: Any,
    kwargs: Any,
    tensors: Any,
) -> Any:
    """Add a call to a program.

    Args:
        b: where to.
        made: what is called.
        module: the module, for a registered class or module.
        args, kwargs: the arguments, with a `Value` for each tensor.
        tensors: values of the module's parameters and buffers.
    """
    operands: list[Any] = []
    attrs: dict[str, Any] = {
        "args": encode(tuple(args), operands),
        "kwargs": tuple((key, encode(value, operands)) for key, value in kwargs.items()),
    }
    if module is not None:
        attrs |= {"inputs": len(operands), "module": identity_of(module)}
    operands += tensors
    if not operands:
        return b.reject(f"`{made.name}` is called without a tensor")
    problem = _problem(made.spec, operands, attrs)
    return b.reject(*problem) if problem else b.emit(made.name, *operands, **attrs)


def _problem(spec: OpSpec, operands: Any, attrs: dict[str, Any]) -> tuple[str, str] | None:
    """What is wrong with a rule at a call, found on tensors without data."""
    from boundgraph.ops._infer import evaluate, meta_tensor

    sizes = {d.symbol: 5 for v in operands for d in v.type.shape if not isinstance(d, int)}
    points = [meta_tensor(value.type, sizes) for value in operands]
    known = {key: evaluate(value, sizes) for key, value in attrs.items()}
    help = f"bg.testing.check_op({spec.name!r}) tries a rule on random operands"
    result = spec.concrete(*points, **known)
    if not isinstance(result, Tensor):
        return f"`{spec.name}` gives {type(result).__name__}, not one tensor", help
    if spec.kind is Kind.ELEMENTWISE and (len(points) > 1 or result.shape != points[0].shape):
        return (
            f"`{spec.name}` is registered as elementwise, but takes {len(points)} tensors to "
            f"{list(result.shape)}",
            "elementwise=True is for functions of one tensor, and numbers, that keep its shape",
        )
    if spec.interval is None:
        return None
    boundable = spec.boundable or ()
    boxes = [
        Interval.point(p) if i in boundable and p.is_floating_point() else p
        for i, p in enumerate(points)
    ]
    if not any(isinstance(box, Interval) for box in boxes):
        return None
    try:
        found = spec.interval(*boxes, **known)
    except Exception as error:
        text = str(error).strip().split("\n")[0]
        return f"the interval rule of `{spec.name}` fails: {type(error).__name__}: {text}", help
    if found.lower.shape != result.shape or found.upper.shape != result.shape:
        return (
            f"the interval rule of `{spec.name}` gives {list(found.lower.shape)} and "
            f"{list(found.upper.shape)}, the function {list(result.shape)}",
            help,
        )
    return None
