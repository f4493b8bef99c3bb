"""split-batch: which reshapes it follows, and that values stay what they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from boundgraph.frontends import capture
from boundgraph.ir.types import Dim, Shape
from boundgraph.ops._infer import RegistryTable
from boundgraph.passes import SplitBatch, run_pipeline
from boundgraph.passes.split_batch import Groups, refine
from boundgraph.runtime.emit import ConstantTable, parameter_lookup
from boundgraph.runtime.interpret import interpret

B = Dim("b")


@pytest.mark.parametrize(
    ("source", "target", "groups"),
    [
        ((B, 4, 6), (B * 4, 6), ((B, 4), (6,))),
        ((5, B, 4), (5, B * 2, 2), ((5,), (B, 2), (2,))),
        ((B, 4, 6), (B, 24), ((B,), (24,))),
        ((B, 4, 6), (B, 2, 12), ((B,), (2,), (12,))),
        ((B, 1, 6), (B, 6), ((B,), (6,))),
        ((B, 4), (4, B), None),
        ((B * 2, 3), (B, 2, 3), ((B,), (2,), (3,))),
        ((B, 6), (B, 4), None),
    ],
)
def test_refine(source: Shape, target: Shape, groups: Groups | None) -> None:
    assert refine(source, target) == groups


class Heads(nn.Module):
    """Merges batch and heads, does something on the merged value, and splits again."""

    def __init__(self, step: object) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        y = x.view(batch, length, 2, width // 2).transpose(1, 2).reshape(batch * 2, length, -1)
        return self.step(y).reshape(batch, 2, length, -1)  # type: ignore[operator, no-any-return]


STEPS = {
    "elementwise": lambda y: torch.relu(y) * 2.0 + 1.0,
    "product": lambda y: y @ y.transpose(1, 2),
    "softmax": lambda y: y.softmax(-1) + y.cumsum(1),
    "constants": lambda y: y + torch.arange(3.0) - torch.ones(1, 4, 1),
    "reduction": lambda y: y - y.mean(1, keepdim=True) + y.amax(2, keepdim=True),
    "pieces": lambda y: torch.cat([y[:, 1:], y[:, :1]], 1).permute(1, 0, 2).flip(2).transpose(0, 1),
    "convolution": lambda y: nn.functional.avg_pool1d(y, 3, 1, 1),
}


@pytest.mark.parametrize("name", STEPS)
def test_values_stay(name: str) -> None:
    model = Heads(STEPS[name])
    found = capture(model, (torch.zeros(2, 4, 6),), dynamic_batch=True)
    program, _ = run_pipeline(found.program, (SplitBatch(),), RegistryTable())
    merged = [node.op for node in program.nodes if Dim("b", 2) in node.result.type.shape]
    # What cannot take another dimension gets the merged one, and nothing else does.
    assert bool(merged) == (name == "convolution")
    x = torch.randn(3, 4, 6)
    lookup = parameter_lookup(found.root, ConstantTable(dict(found.constants)))
    torch.testing.assert_close(interpret(program, (x,), lookup)[0], model(x))
