"""An ordinary training loop, with three lines more: digits, batch normalisation and dropout."""

import torch
from torch import nn

import boundgraph as bg
from boundgraph.data import load

EPS = 0.06


def main(epochs: int = 20) -> None:
    torch.manual_seed(0)
    digits = load("digits")
    model = nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 64),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(64, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    # Bounds of a quarter of each batch; α weighs their loss against the clean one.
    loss_fn = bg.training.MixedLoss(model, eps=0.0, method="ibp", subset=16, alpha=0.6)
    for epoch in range(epochs):
        model.train()
        # A radius that grows from zero lets the network learn digits first.
        loss_fn.set(eps=EPS * min(1.0, (epoch + 1) / 10))
        order = torch.randperm(len(digits.x_train)).split(64)
        for index in order:
            loss = loss_fn(digits.x_train[index], digits.y_train[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    held_out = (digits.x_test, digits.y_test)
    print(bg.evaluate(model, held_out, eps=EPS, method=["ibp", "crown-ibp"]))


if __name__ == "__main__":
    main()
