"""Property tests of a model of your own: put yours in `make`, and run `pytest test_my_model.py`.

The first test looks for points of a region that leave the bounds, under every method. The
others state what the model itself must do, for every input of a region.
"""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import boundgraph as bg


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)
    )


MODEL = make().eval()
BOUNDS = bg.bound(MODEL, method="crown")
inputs = st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3).map(
    lambda values: torch.tensor([values])
)
radii = st.sampled_from([0.0, 1e-6, 1e-3, 0.1, 1.0])


@settings(max_examples=10, deadline=None)
@given(inputs, radii)
def test_no_point_leaves_the_bounds(x: torch.Tensor, eps: float) -> None:
    assert bg.testing.check_model(MODEL, bg.LinfBall(x, eps), points=16) > 0


@settings(max_examples=20, deadline=None)
@given(inputs)
def test_outputs_stay_in_range(x: torch.Tensor) -> None:
    bounds = BOUNDS(bg.LinfBall(x, eps=0.05))
    assert (bounds.lower > -2).all() and (bounds.upper < 2).all()


def test_the_first_output_never_exceeds_two() -> None:
    everywhere = bg.Box(torch.full((1, 3), -1.0), torch.full((1, 3), 1.0))
    limit = bg.LinearSpec(torch.tensor([[-1.0, 0.0]]), torch.tensor([2.0]))  # 2 − f[0] > 0
    assert bg.verify(MODEL, everywhere, limit)
