"""Regions of a model's parameters, beside or instead of regions of its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from boundgraph.domains.regions import Box, LinfBall
from boundgraph.errors import RegionError
from boundgraph.frontends.capture import Capture
from boundgraph.ops._infer import RegistryTable
from boundgraph.passes import ParametersAsInputs, run_pipeline
from boundgraph.runtime.emit import ConstantTable, parameter_lookup

ParameterRegions = Mapping[str, Box | LinfBall]


def with_parameter_inputs(captured: Capture, regions: ParameterRegions) -> Capture:
    """The captured model with further inputs, one for each region of a parameter.

    A parameter that several layers share is one region under any of its names.

    Raises:
        RegionError: no such parameter, a wrong shape or kind of region, or memory that is
            shared with something that would keep its old value.
        UnsupportedError: an op reads it where it cannot take a bound.
    """
    lookup = parameter_lookup(captured.root, ConstantTable(dict(captured.constants)))
    read = {value.name: lookup(value.name) for value in captured.program.params}
    groups: list[tuple[str, ...]] = []
    for path, region in regions.items():
        tensor = _parameter(captured, path)
        if not isinstance(region, Box | LinfBall):
            raise RegionError(
                f"the region of parameter {path!r} must be a Box or LinfBall, "
                f"got {type(region).__name__}"
            )
        if tuple(region.shape) != tuple(tensor.shape):
            raise RegionError(
                f"parameter {path!r} has shape {list(tensor.shape)}, "
                f"its region {list(region.shape)}"
            )
        same = tuple(name for name, other in read.items() if other is tensor)
        memory = tensor.untyped_storage().data_ptr()
        for name, other in read.items():
            if name not in same and other.untyped_storage().data_ptr() == memory:
                raise RegionError(
                    f"{name} is another view of the memory of parameter {path!r} and would not "
                    "follow its region"
                )
        if any(set(same) & set(group) for group in groups):
            raise RegionError(f"parameter {path!r} has two regions under two names")
        groups.append((path, *(name for name in same if name != path)))
    step = ParametersAsInputs(tuple(groups))
    program, _ = run_pipeline(captured.program, (step,), RegistryTable())
    return replace(captured, program=program)


def _parameter(captured: Capture, path: str) -> Tensor:
    known = dict(captured.root.named_parameters(remove_duplicate=False))
    if path not in known:
        some = ", ".join(list(known)[:8])
        raise RegionError(f"the model has no parameter {path!r}; it has {some}")
    return known[path]


def require_inside(model: nn.Module, regions: ParameterRegions) -> None:
    """Raise RegionError unless the model's own weights lie in their regions.

    A counterexample is looked for with the weights as they are, which must be one choice of those
    that a proof is about. Unknown names are left to `with_parameter_inputs`.
    """
    known = dict(model.named_parameters(remove_duplicate=False))
    for path, region in regions.items():
        if path not in known or tuple(region.shape) != tuple(known[path].shape):
            continue
        box, value = region.interval(), known[path].detach()
        if not bool(((box.lower <= value) & (value <= box.upper)).all()):
            raise RegionError(
                f"the model's own {path!r} lies outside its region: attacks run the model as it "
                "is, which says nothing about the weights of the region then"
            )
