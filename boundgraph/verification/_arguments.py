"""What `verify` accepts, checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from boundgraph.attacks._common import require_eval_mode, require_finite_weights
from boundgraph.domains.regions import Box, LinfBall, LpBall, Region
from boundgraph.domains.specs import LinearSpec, Margin
from boundgraph.errors import ConfigError, RegionError, SpecError
from boundgraph.parameter_regions import ParameterRegions, require_inside
from boundgraph.verification.spec import All, Any, AnySpec, Constraint


def check(
    model: nn.Module,
    regions: tuple[Region | Tensor, ...],
    spec: AnySpec,
    timeout: float,
    max_memory: int | None,
    parameters: ParameterRegions,
) -> int:
    """The batch size, once everything fits.

    Raises:
        ConfigError, RegionError, SpecError, NonFiniteError: an argument is unfit.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be an nn.Module, got {type(model).__name__}")
    require_eval_mode(model)
    require_finite_weights(model)
    if not isinstance(spec, Margin | LinearSpec | Constraint | All | Any):
        raise SpecError(
            f"spec must be Margin, LinearSpec, Constraint, All or Any, got {type(spec).__name__}"
        )
    number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if not number or math.isnan(timeout) or timeout < 0:
        raise ConfigError(f"timeout must be a number of seconds >= 0, got {timeout!r}")
    if max_memory is not None and (not isinstance(max_memory, int) or max_memory < 1):
        raise ConfigError(f"max_memory must be a number of bytes >= 1, got {max_memory!r}")
    require_inside(model, parameters)
    return _batch_size(regions, bool(parameters))


def labels_of(
    labels: int | Sequence[int] | Tensor | None, batch: int, spec: AnySpec
) -> list[int] | None:
    """One label per sample; a single number is for all of them."""
    if not isinstance(spec, Margin):
        if labels is not None:
            raise SpecError("labels= is only used with spec=Margin(classes)")
        return None
    if labels is None:
        raise SpecError("spec=Margin(classes) needs labels=, one integer per sample")
    tensor = torch.as_tensor(labels)
    if tensor.dim() == 0:
        tensor = tensor.expand(batch)
    spec.check_labels(tensor, batch)
    return [int(label) for label in tensor]


def one_sample(region: Region | Tensor, index: int, batch: int) -> Region | Tensor:
    """The part of a region that belongs to one sample, still with a batch dimension."""
    at = slice(index, index + 1)
    if isinstance(region, Tensor):
        return region[at] if batch > 1 else region
    if batch == 1:
        return region
    if isinstance(region, Box):
        return Box(region.lower[at], region.upper[at])
    if isinstance(region, LpBall):
        # A number stays the double that it is: rounded to the dtype it might be smaller.
        own = region.radius[at] if isinstance(region.eps, Tensor) else region.eps
        return LpBall(region.center[at], own, region.p, region.clip)
    eps = region.eps
    if isinstance(eps, Tensor):
        eps = eps.expand(region.center.shape)[at]
    return LinfBall(region.center[at], eps, region.clip)


def _batch_size(regions: tuple[Region | Tensor, ...], weights: bool) -> int:
    if not regions:
        raise RegionError("no region given: pass a Box or LinfBall, or one per model input")
    for region in regions:
        if not isinstance(region, Region | Tensor):
            raise RegionError(
                f"expected Box, LinfBall or a tensor, got {type(region).__name__}; "
                "e.g. boundgraph.LinfBall(x, eps=0.1)"
            )
        if not region.shape or not region.shape[0]:
            raise RegionError(
                f"a region of shape {list(region.shape)} holds no samples; dimension 0 is the batch"
            )
    perturbed: list[Region | Tensor] = [r for r in regions if not isinstance(r, Tensor)]
    if not perturbed and not weights:
        raise RegionError("no input is perturbed: at least one must be a Box or LinfBall")
    # Where weights alone are perturbed, all inputs are plain.
    perturbed = perturbed or list(regions)
    batch = int(perturbed[0].shape[0])
    sizes = [int(r.shape[0]) for r in (regions if batch > 1 else perturbed)]
    if any(size != batch for size in sizes):
        raise RegionError(f"the inputs have different batch sizes: {sizes}")
    return batch
