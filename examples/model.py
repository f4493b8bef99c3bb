"""A model file for the command line: `boundgraph compile examples/model.py`."""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 8, 3, stride=2, padding=1),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(8 * 4 * 4, 32),
    nn.ReLU(),
    nn.Linear(32, 10),
)
example_input = torch.rand(4, 1, 8, 8)
