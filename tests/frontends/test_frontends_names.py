"""Names that torch allows in a model and Python does not."""

from __future__ import annotations

import torch
from torch import nn

import boundgraph as bg
from boundgraph.ir.parser import parse_program
from boundgraph.ir.printer import print_program
from boundgraph.testing import check_model


class Dashed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.add_module("block-1", nn.Linear(3, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.get_submodule("block-1")(x).relu().swapaxes(0, 1).swapdims(0, 1)


def test_a_submodule_whose_name_is_no_identifier(tmp_path):
    torch.manual_seed(0)
    model = Dashed()
    region = bg.LinfBall(torch.rand(2, 3), eps=0.1)
    check_model(model, region, methods=("ibp", "crown-ibp"), points=6)
    program = bg.compile(model, region, method="ibp")
    assert "@block-1.weight" in str(program.ir)
    assert parse_program(print_program(program.ir)) == program.ir
    expected = program(region)
    program.save(tmp_path / "net.bgp")
    torch.testing.assert_close(bg.load(tmp_path / "net.bgp")(region).lower, expected.lower)


def test_swapaxes_is_transpose_in_both_frontends():
    class Swap(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.swapaxes(x, 1, 2) - x.swapdims(2, 1)

    region = bg.LinfBall(torch.rand(2, 3, 3), eps=0.1)
    for frontend in ("torch_fx", "torch_export"):
        check_model(Swap(), region, methods=("ibp",), points=6, frontend=frontend)
