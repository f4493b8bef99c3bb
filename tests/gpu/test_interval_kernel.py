"""`interval_linear`: its kernels in Triton's interpreter and as machine code, and its pass."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

import boundgraph as bg
from boundgraph.domains.interval_linear import interval_linear
from boundgraph.gpu import report_program
from boundgraph.passes.interval_kernel import kernel_seconds, library_seconds

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5, bias=False), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(5, 3)).to(dtype)


def compiled(device: str, model: nn.Module | None = None, **options):
    model = network() if model is None else model
    x = torch.zeros(4, 2, 4, dtype=next(model.parameters()).dtype)
    return bg.compile(model, bg.LinfBall(x, 0.1), tune_for=device, **options)


@needs_triton
def test_kernels_in_the_interpreter():
    """Forward and backward against float64, at odd sizes, strides and an exact zero of W."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("interval_kernels.py"))],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["cases"] == 8
    # Sums of at most 70 products in single precision, relative L2 of each tensor.
    assert found["worst"] < 70 * torch.finfo(torch.float32).eps


@needs_triton
@pytest.mark.gpu_model
@pytest.mark.parametrize("name", ["_forward", "_operands", "_weights"])
def test_no_register_spills(name):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from boundgraph.domains import _interval_kernels as kernels
    from boundgraph.gpu._machine_code import _resources

    kernel = getattr(kernels, name)
    for chosen in (kernels.SMALL, kernels.LARGE):
        given = {**chosen, "has_relu": True, "has_bias": True}
        names = [parameter.name for parameter in kernel.params]
        constants = {key: value for key, value in given.items() if key in names}
        kinds = {key: "i32" if len(key) == 1 or (key[0] == "s" and len(key) == 3) else "*fp32"
                 for key in names if key not in constants}  # fmt: skip
        kinds["second"] = "*fp32"
        signature = {key: kinds.get(key, "constexpr") for key in names}
        places = {(names.index(key),): value for key, value in constants.items()}
        source = ASTSource(kernel, signature, constexprs=places)
        options = {"num_warps": chosen["num_warps"]}
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.cubin"
            path.write_bytes(made.asm["cubin"])
            assert _resources(name, str(chosen), path).spilled == 0
        assert "atom" not in made.asm["ptx"]
        assert "tf32" not in made.asm["ptx"]


@pytest.mark.parametrize("relu", [True, False])
def test_gradients(relu):
    torch.manual_seed(0)
    center, weight = torch.randn(4, 5).double(), torch.randn(3, 5).double()
    given = [center, torch.rand(4, 5).double(), weight, torch.randn(3).double()]
    given = [tensor.requires_grad_() for tensor in given]
    assert torch.autograd.gradcheck(lambda *t: interval_linear(*t, relu), given)
    torch.library.opcheck(interval_linear, (*given, relu))


def test_text(golden):
    after = compiled("cuda")
    assert "interval-kernel{batch=128}" in [record.name for record in after.records]
    golden("passes/interval_kernel.txt", f"# before\n{compiled('cpu').ir}\n# after\n{after.ir}")


def test_the_same_bounds():
    region = bg.LinfBall(torch.rand(7, 2, 4), 0.07)
    plain, fused = compiled("cpu")(region), compiled("cuda")(region)
    torch.testing.assert_close(fused.lower, plain.lower)
    torch.testing.assert_close(fused.upper, plain.upper)
    region = bg.LinfBall(torch.rand(3, 2, 4), 0.2)
    assert bg.testing.check_model(network(), region, tune_for="cuda")


def test_it_saves_and_loads(tmp_path):
    program = compiled("cuda")
    program.save(tmp_path / "net.bgp")
    region = bg.LinfBall(torch.rand(3, 2, 4), 0.1)
    assert torch.equal(bg.load(tmp_path / "net.bgp")(region).lower, program(region).lower)


def test_where_it_loses_it_is_not_chosen():
    assert "linear_relu" not in str(compiled("cpu").ir)
    assert "linear_relu" not in str(compiled("cuda", network(torch.float64)).ir)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(8, 1200), nn.ReLU(), nn.Linear(1200, 9), nn.ReLU())
    text = str(compiled("cuda", wide).ir)
    assert text.count("interval.linear_relu") == 1
    # The hidden layers of small networks; not 1,568 inputs, which a library splits.
    assert kernel_seconds(128, 100, 100) < library_seconds(128, 100, 100)
    assert kernel_seconds(128, 100, 1568) > library_seconds(128, 100, 1568)


@pytest.mark.gpu_model
def test_one_launch_for_each_layer():
    inputs = [bg.LinfBall(torch.rand(4, 2, 4), 0.1).interval()]
    found = report_program(compiled("cuda"), inputs)
    plain = report_program(compiled("cpu"), inputs)
    assert found.launches < plain.launches
    assert found.flops == plain.flops
