"""Small models around one way to move, pick, scale or combine elements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Apply(nn.Module):
    """A function of one tensor, between two layers that make bounds matter."""

    def __init__(self, fn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(F.relu(x) - 0.3 * x) * 0.5


@dataclass(frozen=True)
class Case:
    """A function, and the shape of one sample."""

    fn: Callable[[Tensor], Tensor]
    shape: tuple[int, ...] = (2, 4, 4)


INDEX = torch.tensor([2, 0, -1, 2])
FEW, MANY = torch.tensor([1, 0, -1]), torch.tensor([3, 1, 0])
PLACES = torch.tensor([[[0, 3], [1, 1]]])
ROWS, COLUMNS = torch.tensor([[0, 3], [1, 2]]), torch.tensor([[1, 1], [3, 0]])

MOVES: dict[str, Case] = {
    "roll": Case(lambda x: x.roll((1, -1), (2, 3))),
    "roll flat": Case(lambda x: torch.roll(x[:, 0], 1, 1)),
    "flip": Case(lambda x: x.flip(2, 3) + torch.flip(x, [1])),
    "rot90": Case(lambda x: torch.rot90(x, 1, (2, 3)) + torch.rot90(x, 3, (2, 3))),
    "repeat": Case(lambda x: x.repeat(1, 2, 1, 3)),
    "repeat a dimension": Case(lambda x: x[:, 0].repeat(1, 2, 1)),
    "tile": Case(lambda x: torch.tile(x, (2, 1))),
    "repeat_interleave": Case(lambda x: x.repeat_interleave(3, dim=2)),
    "expand": Case(lambda x: x[:, :1].expand(-1, 5, -1, -1)),
    "movedim": Case(
        lambda x: (
            x.movedim((1, 2), (3, 1)) + torch.moveaxis(x, 1, 3).transpose(1, 2).transpose(1, 2)
        )
    ),
    "pixel_shuffle": Case(lambda x: F.pixel_shuffle(x, 2), (4, 2, 3)),
    "pixel_unshuffle": Case(lambda x: F.pixel_unshuffle(x, 2)),
    "channel_shuffle": Case(lambda x: F.channel_shuffle(x, 2), (4, 2, 2)),
    "unflatten": Case(lambda x: x.flatten(1).unflatten(1, (4, -1))),
    "squeeze": Case(lambda x: x[:, :1].squeeze(1).unsqueeze(-1)),
    "crop by padding": Case(lambda x: F.pad(x, (-1, 0, 0, -2))),
    "pad and crop": Case(lambda x: F.pad(x, (-1, 2, 1, -2), value=0.5)),
    "pad reflect": Case(lambda x: F.pad(x, (2, 1, 1, 0), mode="reflect")),
    "pad replicate": Case(lambda x: F.pad(x, (2, 1, 1, 0), mode="replicate")),
    "pad circular": Case(lambda x: F.pad(x, (2, 1, 1, 0), mode="circular")),
    "unfold": Case(lambda x: F.unfold(x, 2, stride=1, padding=1)),
    "fold": Case(lambda x: F.fold(F.unfold(x, 2, stride=2), (4, 4), 2, stride=2)),
    "tensor unfold": Case(lambda x: x.unfold(2, 2, 1)),
    "diagonal": Case(lambda x: x.diagonal(dim1=2, dim2=3)),
    "triu": Case(lambda x: torch.triu(x, 1) + x.tril()),
    "hstack": Case(lambda x: torch.hstack((x, x)) + torch.cat((x, x), 1)),
    "vstack": Case(lambda x: torch.dstack((x, x * 2.0))),
    "tensor_split": Case(lambda x: torch.tensor_split(x, 3, dim=2)[1]),
    "ravel": Case(lambda x: x.transpose(-1, -2).contiguous().flatten(start_dim=1)),
    "adjoint": Case(lambda x: x.mT + x.transpose(2, 3)),
}

PICKS: dict[str, Case] = {
    "index_select": Case(lambda x: x.index_select(2, torch.tensor([1, 1, 3]))),
    "gather": Case(lambda x: x[:, 0].gather(2, torch.zeros_like(x[:, 0, :2, :2]).long() + PLACES)),
    "index": Case(lambda x: x[:, :, INDEX]),
    "index twice": Case(lambda x: x[:, :, ROWS, COLUMNS]),
    "index apart": Case(lambda x: x[:, FEW, :, MANY].transpose(0, 1), (2, 3, 4)),
    "index list": Case(lambda x: x[..., [0, 2]]),
    "index and number": Case(lambda x: x[:, 1, INDEX]),
    "strides": Case(lambda x: x[:, :, ::2, 1::2] + x[:, :, 1::2, 0::2]),
    "amax": Case(lambda x: x.amax((2, 3)) + x.amin(dim=(1, 2), keepdim=True).mean((1, 2))[:, :2]),
    "max": Case(lambda x: x.max(2).values - torch.min(x, dim=3)[0]),
    "aminmax": Case(lambda x: torch.stack(torch.aminmax(x, dim=2))[1]),
    "sort": Case(lambda x: torch.sort(x, dim=3, descending=True)[0]),
    "topk": Case(lambda x: x.flatten(1).topk(5).values),
    "smallest": Case(lambda x: torch.topk(x, 2, dim=1, largest=False)[0]),
    "kthvalue": Case(lambda x: x.kthvalue(2, dim=2).values),
    "median": Case(lambda x: x.median(dim=2).values),
    "quantile": Case(
        lambda x: (
            torch.quantile(x, 0.3, dim=2)
            + x.quantile(0.5, dim=3, keepdim=True)[..., 0]
            - x.quantile(1.0, dim=3, interpolation="lower")
        )
    ),
    "cummax": Case(lambda x: x.cummax(2).values - torch.cummin(x, 1)[0]),
    "cumsum": Case(lambda x: x.cumsum(1) - torch.cumsum(x, dim=-1)),
    "diff": Case(lambda x: torch.diff(x, dim=2)),
    "adaptive max": Case(lambda x: F.adaptive_max_pool2d(x, (2, 3))),
}

SCALES: dict[str, Case] = {
    "layer_norm": Case(
        lambda x: F.layer_norm(
            x, (4,), torch.linspace(-1, 1, 4, dtype=x.dtype), torch.ones(4, dtype=x.dtype)
        )
    ),
    "layer_norm over three": Case(lambda x: F.layer_norm(x, (2, 4, 4))),
    "group_norm": Case(
        lambda x: F.group_norm(
            x, 2, torch.tensor([1.0, -2.0, 0.5, 1.0], dtype=x.dtype), torch.ones(4, dtype=x.dtype)
        ),
        (4, 2, 2),
    ),
    "instance_norm": Case(lambda x: F.instance_norm(x)),
    "rms_norm": Case(lambda x: F.rms_norm(x, (4, 4), eps=1e-3)),
    "normalize": Case(lambda x: F.normalize(x, dim=1)),
    "norm": Case(lambda x: x.norm(dim=2) + torch.linalg.vector_norm(x, 1, dim=3)),
    "largest norm": Case(lambda x: torch.linalg.vector_norm(x, float("inf"), dim=(2, 3))),
    "std": Case(lambda x: x.std(dim=2) + torch.var(x, dim=3, unbiased=False)),
    "var_mean": Case(lambda x: torch.stack(torch.var_mean(x, dim=(1, 2)))),
}

RESIZES: dict[str, Case] = {
    "nearest": Case(lambda x: F.interpolate(x, scale_factor=2)),
    "nearest size": Case(lambda x: F.interpolate(x, size=(3, 7))),
    "nearest-exact": Case(lambda x: F.interpolate(x, size=(5, 3), mode="nearest-exact")),
    "bilinear": Case(lambda x: F.interpolate(x, size=(7, 3), mode="bilinear")),
    "bilinear aligned": Case(
        lambda x: F.interpolate(x, scale_factor=(1.5, 2.0), mode="bilinear", align_corners=True)
    ),
    "bicubic": Case(lambda x: F.interpolate(x, size=(6, 5), mode="bicubic")),
    "antialias": Case(lambda x: F.interpolate(x, size=(2, 3), mode="bilinear", antialias=True)),
    "linear": Case(lambda x: F.interpolate(x, size=7, mode="linear"), (2, 4)),
    "trilinear": Case(lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"), (1, 2, 2, 3)),
    "area": Case(lambda x: F.interpolate(x, size=(2, 3), mode="area")),
    "upsample module": Case(nn.Upsample(scale_factor=2, mode="bilinear"), (1, 3, 3)),
}

CASES = MOVES | PICKS | SCALES | RESIZES
