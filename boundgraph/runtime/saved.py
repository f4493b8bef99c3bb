"""Save a compiled program with the tensors that it reads, and load it without the model's code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from boundgraph.domains.specs import CrossEntropy, LinearSpec, Margin, OtherMargins, Spec
from boundgraph.errors import CheckpointError, InternalError, ParseError
from boundgraph.ir.parser import parse_program
from boundgraph.ir.program import Program
from boundgraph.ir.types import Dim
from boundgraph.ir.verifier import verify
from boundgraph.ops._infer import RegistryTable
from boundgraph.runtime.archive import read_archive, write_archive
from boundgraph.runtime.emit import parameter_lookup
from boundgraph.runtime.module import BoundProgram, ProgramInfo
from boundgraph.runtime.optimized import OptimizedProgram

KIND = "boundgraph.program.1"


class SavedModel(nn.Module):
    """Stands in for the user's model in a loaded program: its tensors under their old paths."""

    def __init__(self, tensors: Mapping[str, Tensor], trainable: Mapping[str, bool]) -> None:
        super().__init__()
        for path, tensor in tensors.items():
            *folders, name = path.split(".")
            place: nn.Module = self
            for folder in folders:
                inside = getattr(place, folder, None)
                if inside is None:
                    inside = nn.Module()
                    place.add_module(folder, inside)
                place = inside
            if path in trainable:
                parameter = nn.Parameter(tensor, requires_grad=trainable[path])
                place.register_parameter(name, parameter)
            else:
                place.register_buffer(name, tensor)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("a loaded program has the model's tensors but not its code")


def save(program: BoundProgram, path: str | os.PathLike[str]) -> None:
    """Write a program: its text, the tensors that it reads, specification and method.

    Raises:
        CheckpointError: the file cannot be written; an old one is unchanged.
    """
    lookup = parameter_lookup(program.model, program.constants)
    constants = program.constants.tensors()
    tensors = {param.name: lookup(param.name) for param in program.ir.params}
    info, tree = program.info, program.info.output_tree
    state = {
        "text": str(program.ir),
        "tensors": {k: v.detach() for k, v in tensors.items() if k not in constants},
        "trainable": {
            name: tensor.requires_grad
            for name, tensor in tensors.items()
            if isinstance(tensor, nn.Parameter) and name not in constants
        },
        "constants": {k: v.detach() for k, v in constants.items()},
        "spec": _spec_state(info.spec),
        "method": info.method,
        "inputs": info.inputs,
        "needs_clean": info.needs_clean,
        "norms": [list(pair) for pair in info.norms],
        "slopes": list(info.slopes),
        "output_tree": None if tree is None else pytree.treespec_dumps(tree),
        "frontend": info.frontend,
        "max_memory": info.max_memory,
        "rounding": info.rounding,
        "target": info.target,
        "parameters": list(info.parameters),
    }
    write_archive(path, KIND, state)


def load(path: str | os.PathLike[str], *, map_location: str | torch.device = "cpu") -> BoundProgram:
    """Load a program that `BoundProgram.save` wrote. Nothing in the file can run code.

    Args:
        path: the file.
        map_location: device for its tensors.

    Raises:
        CheckpointError: the file is missing, truncated, altered or from another version.
    """
    state = read_archive(path, KIND, map_location)
    try:
        program = parse_program(state["text"])
        verify(program, RegistryTable())
        model = SavedModel(state["tensors"], state["trainable"])
        made = OptimizedProgram if state["slopes"] else BoundProgram
        loaded = made(program, model, state["constants"], _info(state))
    except (KeyError, TypeError, ValueError, AttributeError, ParseError, InternalError) as error:
        raise CheckpointError(
            f"{path} holds a program that this version of BoundGraph cannot run: {error}"
        ) from error
    _check_tensors(path, program, loaded)
    return loaded


def _check_tensors(path: str | os.PathLike[str], program: Program, loaded: BoundProgram) -> None:
    lookup = parameter_lookup(loaded.model, loaded.constants)
    for param in program.params:
        shape = tuple(lookup(param.name).shape)
        fits = len(shape) == len(param.type.shape) and all(
            isinstance(want, Dim) or have == want
            for have, want in zip(shape, param.type.shape, strict=True)
        )
        if not fits:
            raise CheckpointError(
                f"{path}: tensor {param.name} has shape {list(shape)}, "
                f"its program reads {param.type}"
            )


def _spec_state(spec: Spec | None) -> dict[str, Any] | None:
    if isinstance(spec, Margin):
        loss, others = isinstance(spec, CrossEntropy), isinstance(spec, OtherMargins)
        return {"classes": spec.classes, "loss": loss, "others": others}
    if isinstance(spec, LinearSpec):
        return {"matrix": spec.matrix, "offset": spec.offset}
    return None


def _spec(state: dict[str, Any] | None) -> Spec | None:
    if state is None:
        return None
    if "classes" not in state:
        return LinearSpec(**state)
    made = CrossEntropy if state.get("loss") else Margin
    return (OtherMargins if state.get("others") else made)(state["classes"])


def _info(state: dict[str, Any]) -> ProgramInfo:
    tree = state["output_tree"]
    return ProgramInfo(
        method=state["method"],
        spec=_spec(state["spec"]),
        inputs=state["inputs"],
        needs_clean=state["needs_clean"],
        norms=tuple((name, norm) for name, norm in state["norms"]),
        slopes=tuple(state["slopes"]),
        output_tree=None if tree is None else pytree.treespec_loads(tree),
        frontend=state["frontend"],
        max_memory=state.get("max_memory"),
        # Files of earlier versions hold programs that round to nearest.
        rounding=state.get("rounding", "nearest"),
        target=state.get("target", "real"),
        parameters=tuple(state.get("parameters", ())),
    )
