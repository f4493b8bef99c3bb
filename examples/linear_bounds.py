"""Draw the linear bounds of a small network of one variable over three regions."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import nn

import boundgraph as bg


def main(path: str = "linear_bounds.png") -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 1)
    )
    linear_bounds = bg.linear_bounds(model, method="crown")
    figure, axes = plt.subplots(figsize=(7, 4))
    everywhere = torch.linspace(-3.2, 3.2, 400).unsqueeze(1)
    with torch.no_grad():
        axes.plot(everywhere, model(everywhere), color="black", label="network")
        for index, center in enumerate((-2.0, 0.0, 2.0)):
            found = linear_bounds(bg.LinfBall(torch.tensor([[center]]), eps=0.8))
            ends = torch.tensor([[center - 0.8], [center + 0.8]])
            # One region, two points: the two ends of each line.
            lines = [found.evaluate(end.unsqueeze(0)) for end in ends]
            for side, color in ((0, "tab:blue"), (1, "tab:red")):
                values = [float(line[side]) for line in lines]
                name = ("lower", "upper")[side] if index == 0 else None
                axes.plot(ends.squeeze(1), values, color=color, label=name)
            axes.axvspan(center - 0.8, center + 0.8, color="0.93", zorder=0)
    axes.set(xlabel="input", ylabel="output", title="Linear bounds over three regions")
    axes.legend()
    figure.savefig(path, dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    main()
