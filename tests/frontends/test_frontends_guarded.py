"""Spellings whose arguments torch's parser must not read while a model is traced."""

import subprocess
import sys
import textwrap

import pytest
import torch

CALLS = (
    "torch.pow(x, 4)",
    "torch.pow(2.0, x)",
    "torch.float_power(x, 2)",
    "torch.where(m.mask, x, 2.0)",
    "torch.remainder(x, 2.0)",
    "torch.xlogy(x, 2.0)",
    "torch.clamp(x, 0.0, m.v)",
    "torch.clip(x, m.v, 1.0)",
    "torch.as_tensor(x)",
    "torch.tensor([x.sum(), 1.0])",
    "torch.result_type(x, 1.0)",
)


@pytest.mark.parametrize("half", [0, 1])
def test_no_spelling_crashes_python(half):
    """In a process of its own, as a crash would take the tests along."""
    script = textwrap.dedent("""
        import sys, torch
        from torch import nn
        from boundgraph.errors import BoundGraphError
        from boundgraph.frontends.capture import capture

        class Model(nn.Module):
            def __init__(self, call):
                super().__init__()
                self.call = call
                self.register_buffer("mask", torch.tensor([True, False, True, False]))
                self.register_buffer("v", torch.ones(4))

            def forward(self, x):
                return eval(self.call, {"torch": torch, "m": self, "x": x})

        for call in sys.argv[1:]:
            for _ in range(3):
                try:
                    capture(Model(call), (torch.zeros(2, 4),))
                except BoundGraphError:
                    pass
        print("alive")
    """)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *CALLS[half::2]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "alive"


def test_functions_are_put_back():
    from boundgraph.frontends._guarded import GUARDED, guarded

    with guarded(), guarded():
        assert torch.pow is not GUARDED["pow"]
        assert float(torch.pow(torch.tensor(2.0), 3)) == 8.0
    assert all(getattr(torch, name) is function for name, function in GUARDED.items())
