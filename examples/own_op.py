"""Give BoundGraph an activation of your own, test its rule, and bound a network with it."""

import torch
from torch import nn

import boundgraph as bg
from boundgraph.errors import SoundnessError


def bump(x, height=1.0):
    """A hill: `height` at 0, falling to both sides."""
    return height / (1.0 + x * x)


def bump_interval(x, height=1.0):
    """The top is at the point nearest to 0, the bottom at the one farthest from it."""
    far = torch.maximum(x.lower.abs(), x.upper.abs())
    near = torch.minimum(x.lower.abs(), x.upper.abs())
    near = torch.where((x.lower <= 0) & (x.upper >= 0), 0.0, near)
    return bg.Interval(height / (1.0 + far * far), height / (1.0 + near * near))


def forgetful_interval(x, height=1.0):
    """Wrong: forgets that the top may lie inside."""
    ends = bump(x.lower, height), bump(x.upper, height)
    return bg.Interval(torch.minimum(*ends), torch.maximum(*ends))


class Net(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 2)
        self.activation = activation

    def forward(self, x):
        return self.last(self.activation(self.first(x), height=2.0))


def main() -> None:
    torch.manual_seed(0)
    with bg.register_op(bump, interval=forgetful_interval, elementwise=True, ulps=4) as wrong:
        try:
            bg.testing.check_op(wrong)
        except SoundnessError as error:
            print("the wrong rule is found:", str(error).partition(": bump")[0])

    activation = bg.register_op(bump, interval=bump_interval, elementwise=True, ulps=4)
    bg.testing.check_op(activation, cases=200)
    print("the right rule holds on 200 random uses")

    region = bg.LinfBall(torch.randn(3, 4), eps=0.1)
    for method in ("ibp", "crown"):
        bounds = bg.bound(Net(activation), method=method)(region)
        print(f"{method}: mean width {float((bounds.upper - bounds.lower).mean().detach()):.3f}")
    activation.remove()


if __name__ == "__main__":
    main()
