"""Small models around one op: both frontends agree, and every method encloses."""

from __future__ import annotations

import pytest
import torch
from single_ops import CASES, Apply, Case

import boundgraph as bg
from boundgraph.frontends import capture
from boundgraph.runtime.emit import ConstantTable, parameter_lookup
from boundgraph.runtime.interpret import interpret
from boundgraph.testing import check_model

by_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def box(case: Case, batch: int, dtype: torch.dtype) -> bg.Box:
    generator = torch.Generator().manual_seed(3)
    center = torch.randn((batch, *case.shape), generator=generator, dtype=torch.float64)
    radius = torch.rand(center.shape, generator=generator, dtype=torch.float64) * 0.4
    # Some elements are fixed, some wide.
    radius = radius * torch.randint(0, 3, radius.shape, generator=generator)
    return bg.Box((center - radius).to(dtype), (center + radius).to(dtype))


@by_case
@pytest.mark.parametrize("batch", [1, 3])
def test_the_program_computes_what_the_model_does(case: Case, batch: int) -> None:
    model = Apply(case.fn).double()
    x = box(case, batch, torch.float64).center
    expected = model(x)
    for frontend in ("torch_fx", "torch_export"):
        found = capture(
            model,
            (torch.zeros(2, *case.shape, dtype=torch.float64),),
            frontend=frontend,
            dynamic_batch=True,
        )
        lookup = parameter_lookup(found.root, ConstantTable(dict(found.constants)))
        outputs = interpret(found.program, (x,), lookup)
        torch.testing.assert_close(outputs[0], expected, rtol=1e-9, atol=1e-9)


@by_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_every_method_encloses(case: Case, dtype: torch.dtype) -> None:
    model = Apply(case.fn).to(dtype)
    methods = ("ibp", "symbolic", "crown-ibp", "crown")
    check_model(model, box(case, 3, dtype), methods=methods, points=16, dynamic_batch=True)
