"""What a certificate is about: the program, its constants and the region, in exact numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from boundgraph.domains.regions import Box, LpBall, Region
from boundgraph.errors import CertificateError
from boundgraph.frontends.capture import capture
from boundgraph.ir.program import Node, Program
from boundgraph.ops._infer import RegistryTable
from boundgraph.passes import DeadCode, run_pipeline
from boundgraph.runtime.emit import ConstantTable, parameter_lookup
from boundgraph.runtime.interpret import DimSizes, run_node
from boundgraph.verification.checker import DERIVED, DTYPES

FOLDED, INPUT = DERIVED


@dataclass
class Record:
    """A program as the checker reads it.

    Args:
        program: `arguments` of the model in order, `inputs` that are perturbed, `nodes`,
            and the name of the `output`.
        tensors: constants by name: parameters, values computed from them alone
            (`folded.*`) and inputs that are not perturbed (`input.*`).
    """

    program: dict[str, Any]
    tensors: dict[str, np.ndarray] = field(default_factory=dict)


def record_program(model: nn.Module, regions: Sequence[Region | Tensor]) -> Record:
    """The program of a model on one sample.

    Raises:
        CertificateError: something of it cannot be written down.
    """
    examples = tuple(r if isinstance(r, Tensor) else r.interval().lower for r in regions)
    captured = capture(model, examples, {})
    program, _ = run_pipeline(captured.program, (DeadCode(),), RegistryTable())
    if len(program.outputs) != 1:
        raise CertificateError(f"the model has {len(program.outputs)} outputs, not one")
    lookup = parameter_lookup(captured.root, ConstantTable(captured.constants))
    with torch.no_grad():
        return _Recorder(program, regions, examples, lookup).record()


class _Recorder:
    def __init__(
        self, program: Program, regions: Sequence[Any], examples: Sequence[Tensor], lookup: Any
    ) -> None:
        self.program, self.regions = program, regions
        self.values: dict[str, Any] = {}
        for value, example in zip(program.inputs, examples, strict=True):
            self.values[str(value)] = example
        for value in program.params:
            self.values[str(value)] = lookup(value.name)
        self.sizes = DimSizes(program, self.values)
        self.moving = {
            str(value)
            for value, region in zip(program.inputs, regions, strict=True)
            if not isinstance(region, Tensor)
        }
        self.names: dict[str, str] = {str(v): v.name for v in program.params}
        self.record_ = Record({"arguments": [], "inputs": [], "nodes": [], "output": ""})

    def record(self) -> Record:
        made = self.record_
        for value, region in zip(self.program.inputs, self.regions, strict=True):
            key, fixed = str(value), isinstance(region, Tensor)
            example = self.values[key]
            entry = {"name": value.name, "dtype": str(example.dtype).removeprefix("torch.")}
            made.program["arguments"].append({**entry, "fixed": fixed})
            if fixed:
                self.names[key] = INPUT + value.name
                self.constant(key)
            else:
                made.program["inputs"].append({"name": value.name, "shape": list(example.shape)})
        for node in self.program.nodes:
            self.add(node)
        output = str(self.program.outputs[0])
        if output not in self.moving:
            raise CertificateError("the output does not depend on a perturbed input")
        made.program["output"] = output
        return made

    def add(self, node: Node) -> None:
        key = str(node.result)
        if not any(str(value) in self.moving for value in node.inputs):
            self.values[key] = run_node(node, self.values, self.sizes)
            self.names[key] = FOLDED + node.result.name
            return
        self.moving.add(key)
        self.record_.program["nodes"].append(
            {
                "name": node.result.name,
                "op": node.op,
                "inputs": [self.operand(str(value)) for value in node.inputs],
                "attrs": {k: _plain(self.sizes.resolve(v)) for k, v in node.attrs.items()},
            }
        )

    def operand(self, key: str) -> str:
        return key if key in self.moving else self.constant(key)

    def constant(self, key: str) -> str:
        name = self.names[key]
        if name not in self.record_.tensors:
            tensor = self.values[key].detach().cpu()
            dtype = str(tensor.dtype).removeprefix("torch.")
            if dtype not in DTYPES:
                raise CertificateError(
                    f"{name} has dtype {dtype}; a certificate holds {', '.join(DTYPES)}"
                )
            self.record_.tensors[name] = np.ascontiguousarray(tensor.numpy())
        return "@" + name


def record_region(
    program: dict[str, Any], regions: Sequence[Region | Tensor]
) -> dict[str, dict[str, Any]]:
    """Ends of each perturbed input, as hexadecimal doubles that contain the region, and its ball.

    Raises:
        CertificateError: a kind of region that the checker does not know.
    """
    moving = [region for region in regions if not isinstance(region, Tensor)]
    found: dict[str, dict[str, Any]] = {}
    for given, region in zip(program["inputs"], moving, strict=True):
        lower, upper = _ends(region)
        found[given["name"]] = {"lower": hexadecimal(lower), "upper": hexadecimal(upper)}
        if isinstance(region, LpBall):
            radius = _double(torch.as_tensor(region.eps, dtype=torch.float64))
            found[given["name"]]["ball"] = {
                "center": hexadecimal(_double(region.center)),
                "radius": hexadecimal(radius)[0],
                "norm": int(region.p),
            }
    return found


def hexadecimal(values: np.ndarray) -> list[str]:
    """Doubles, exactly, as `float.fromhex` reads them."""
    return [_hex(float(value)) for value in values.ravel()]


def _hex(value: float) -> str:
    mantissa, exponent = value.hex().split("p")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}p{exponent}"


def _ends(region: Region) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(region, Box):
        return _double(region.lower), _double(region.upper)
    if isinstance(region, LpBall) and region.p not in (1.0, 2.0):
        raise CertificateError(
            f"a ball of the {region.p:g}-norm: certificates are for Box, LinfBall, L1Ball, L2Ball"
        )
    center = _double(region.center)
    eps = _double(torch.as_tensor(region.eps, dtype=torch.float64))
    eps = np.broadcast_to(eps, center.shape)
    lower = np.where(eps == 0, center, np.nextafter(center - eps, -np.inf))
    upper = np.where(eps == 0, center, np.nextafter(center + eps, np.inf))
    if region.clip is not None:
        lower, upper = lower.clip(*region.clip), upper.clip(*region.clip)
    return lower, upper


def _double(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CertificateError(f"an attribute of type {type(value).__name__} cannot be recorded")
