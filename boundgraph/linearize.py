"""Linear bounds of a model as a result: for reachability, sensitivity and explanation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from boundgraph.compiler import CompileOptions, compile_model
from boundgraph.domains.interval import Interval
from boundgraph.domains.linear_bounds import LinearBounds, from_rows
from boundgraph.domains.regions import Region
from boundgraph.domains.specs import Spec
from boundgraph.errors import ConfigError, NonFiniteError
from boundgraph.runtime.module import BoundProgram, flatten

LINEAR_METHODS = ("crown-ibp", "crown")


def linear_bounds(
    model: nn.Module, *, method: str = "crown", spec: Spec | None = None, **options: Any
) -> Callable[..., LinearBounds]:
    """Transform a model into a function from regions to linear bounds on its inputs.

    The bounds are those that a backward method (Zhang et al., CROWN, arXiv 1811.00866)
    concretises: `result.concretize()` gives its interval again.

    Args:
        model: with one output tensor `[batch, ...]`; not changed.
        method: `"crown-ibp"` or `"crown"`.
        spec: bound rows of this specification instead of the outputs.
        options: further options of `compile`: `frontend`.

    Returns:
        `(*regions, labels=None) -> LinearBounds`.

    Raises:
        ConfigError: another method, or a model with several outputs.
        RegionError, SpecError, NonFiniteError, CaptureError, UnsupportedError: as `compile`.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x = torch.zeros(1, 2)
        >>> linear = linear_bounds(model)(LinfBall(x, eps=0.1))
        >>> linear.lower_weight[0].shape
        torch.Size([1, 3, 2])
        >>> lower, upper = linear.evaluate(x)  # model(x) lies between, up to rounding
        >>> bool((lower <= upper + 1e-6).all())
        True
    """
    if method not in LINEAR_METHODS:
        raise ConfigError(
            f"linear bounds come from {' or '.join(LINEAR_METHODS)}, not from {method!r}"
        )
    chosen = CompileOptions(method=method, spec=spec, linear=True, **options)

    def bounds_of(*regions: Region | Tensor, labels: Tensor | None = None) -> LinearBounds:
        program = compile_model(model, regions, {}, chosen)
        inputs = program.check(*regions, labels=labels)
        with program.arithmetic(inputs):
            outputs = program.graph_module(*flatten(program.arguments(inputs, labels)))
        return _result(program, inputs, outputs)

    return bounds_of


def _result(
    program: BoundProgram, inputs: list[Interval | Tensor], outputs: tuple[Any, ...]
) -> LinearBounds:
    (lower, _), *forms = outputs
    names = program.info.linear
    rest = Interval(*forms.pop()) if len(forms) > len(names) else None
    by_name = dict(zip((value.name for value in program.ir.inputs), inputs, strict=False))
    region = tuple(box for name in names if isinstance(box := by_name[name], Interval))
    found = from_rows(forms, rest, len(lower), tuple(lower.shape[1:]), region)
    parts = (*found.lower_weight, *found.upper_weight, found.lower_bias, found.upper_bias)
    if not all(bool(part.isfinite().all()) for part in parts):
        raise NonFiniteError(
            "a linear bound is infinite or NaN: some value inside overflows, or has no finite "
            "bound on this region"
        )
    return found
