"""How far a neural controller lets a pendulum swing: sets of states, and a proof of a limit.

A network learns to imitate a stabilising controller of an inverted pendulum. Then the closed loop
of many steps is bounded for a whole box of initial states, in two ways: step by step, where each
step begins with the box around the last one, and as one model, where bounds keep track of how the
states depend on the first.
"""

import torch
from torch import Tensor, nn

import boundgraph as bg

STEP, STEPS = 0.05, 20  # seconds, steps


class ClosedLoop(nn.Module):
    """Angle and velocity after some steps of dynamics and controller."""

    def __init__(self, controller: nn.Module, steps: int) -> None:
        super().__init__()
        self.controller, self.steps = controller, steps

    def forward(self, state: Tensor) -> Tensor:
        for _ in range(self.steps):
            angle, velocity = state[:, :1], state[:, 1:]
            torque = self.controller(state)
            angle = angle + STEP * velocity
            velocity = velocity + STEP * (torch.sin(state[:, :1]) + torque)
            state = torch.cat([angle, velocity], dim=1)
        return state


def imitate(steps: int = 400) -> nn.Module:
    """A small network that has learned u = −3·angle − 2·velocity."""
    torch.manual_seed(0)
    controller = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(controller.parameters(), lr=1e-2)
    for _ in range(steps):
        states = 2 * torch.rand(256, 2) - 1
        wanted = states @ torch.tensor([[-3.0], [-2.0]])
        loss = (controller(states) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return controller.eval()


def angle_of(bounds: bg.Box | bg.Bounds) -> str:
    lower, upper = bounds.lower[0, 0].item(), bounds.upper[0, 0].item()
    return f"[{lower:6.3f}, {upper:6.3f}]"


def main() -> None:
    controller = imitate()
    start = bg.Box(torch.tensor([[0.25, -0.05]]), torch.tensor([[0.35, 0.05]]))

    one_step = bg.bound(ClosedLoop(controller, 1), method="crown")
    boxes = [start]
    for _ in range(STEPS):
        bounds = one_step(boxes[-1])
        boxes.append(bg.Box(bounds.lower, bounds.upper))

    print("seconds   angle, step by step   angle, as one model")
    for count in (1, 5, 10, STEPS):
        joint = bg.bound(ClosedLoop(controller, count), method="crown")(start)
        print(f"{count * STEP:7.2f}   {angle_of(boxes[count])}      {angle_of(joint)}")

    # After a second the angle lies between −0.2 and 0.3: strict lower bounds of two rows.
    limit = bg.LinearSpec(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0.2, 0.3]))
    print(bg.verify(ClosedLoop(controller, STEPS), start, limit))


if __name__ == "__main__":
    main()
