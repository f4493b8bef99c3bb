"""Linear bounds as a result: they enclose the model, and concretise to the method's bounds."""

import pytest
import torch
from torch import nn

import boundgraph as bg
from boundgraph.errors import ConfigError


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(3, 5), nn.Linear(2, 5), nn.Linear(5, 2)

    def forward(self, x, z):
        return self.out(torch.sigmoid(self.first(x)) * torch.relu(self.second(z)))


def conv():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4)
    ).double()


def enclosed(linear, model, *points):
    lower, upper = linear.evaluate(*points)
    value = model(*points)
    room = 1e-9 * (1 + value.abs())
    assert bool((lower <= value + room).all())
    assert bool((value <= upper + room).all())


@pytest.mark.parametrize("method", ["crown-ibp", "crown"])
@pytest.mark.parametrize("ball", [bg.LinfBall, bg.L2Ball, bg.L1Ball])
def test_they_enclose_the_model_and_concretize_to_its_bounds(method, ball):
    model = conv()
    x = torch.rand(3, 1, 4, 4).double()
    region = ball(x, 0.2)
    with torch.no_grad():
        linear = bg.linear_bounds(model, method=method)(region)
        assert linear.lower_weight[0].shape == (3, 4, 1, 4, 4)
        expected = bg.bound(model, method=method)(region)
        found = linear.concretize()
        torch.testing.assert_close(found.lower, expected.lower, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.upper, expected.upper, rtol=1e-9, atol=1e-9)
        generator = torch.Generator().manual_seed(1)
        for _ in range(20):
            enclosed(linear, model, bg.testing.sample_point(region.interval(), generator))


def test_several_inputs_and_a_plain_one():
    torch.manual_seed(0)
    model = TwoInputs().double()
    x, z = torch.rand(4, 3).double(), torch.rand(4, 2).double()
    regions = bg.LinfBall(x, 0.3), bg.L2Ball(z, 0.5)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        linear = bg.linear_bounds(model)(*regions)
        assert [w.shape[2:] for w in linear.lower_weight] == [(3,), (2,)]
        for _ in range(30):
            points = [bg.testing.sample_point(r.interval(), generator) for r in regions]
            enclosed(linear, model, *points)
        only = bg.linear_bounds(model)(regions[0], z)
        assert len(only.lower_weight) == 1
        enclosed(only, lambda point: model(point, z), x)


def test_margins():
    model = conv()
    x = torch.rand(3, 1, 4, 4).double()
    labels = torch.tensor([0, 3, 1])
    with torch.no_grad():
        linear = bg.linear_bounds(model, spec=bg.Margin(4))(bg.LinfBall(x, 0.1), labels=labels)
        lower, _ = linear.evaluate(x)
        logits = model(x)
    margins = logits.gather(1, labels[:, None]) - logits
    assert bool((lower <= margins + 1e-9).all())


def test_what_has_no_linear_bounds_says_so():
    with pytest.raises(ConfigError, match="crown-ibp or crown"):
        bg.linear_bounds(conv(), method="ibp")

    class Pair(nn.Module):
        def forward(self, x):
            return x, 2 * x

    with pytest.raises(ConfigError, match="one output"):
        bg.linear_bounds(Pair())(bg.LinfBall(torch.zeros(1, 2), 0.1))
