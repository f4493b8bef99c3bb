"""Scatters, losses and other functions that are a few ops each: captured, and enclosed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from single_ops import Apply
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.errors import NonFiniteError, UnsupportedError
from boundgraph.testing import check_model

Fn = Callable[[Tensor], Tensor]
PLACES, TWICE = torch.tensor([0, 2, 3]), torch.tensor([0, 2, 2])
MASK = torch.tensor([True, False, False, True])
MATRIX = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64).view(4, 3)
WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 4.0], dtype=torch.float64)


def rows(x: Tensor, index: Tensor) -> Tensor:
    """The same index for each sample, in a shape that follows the batch."""
    return torch.zeros_like(x[:, : len(index)]).long() + index


def labels(x: Tensor, *more: int) -> Tensor:
    return torch.zeros(x.shape[0], *more, dtype=torch.long) + 1


def overwritten(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, [0, 2]] = x[:, 1:3]
    y[:, MASK] = 0.25
    return y


SCATTERS: dict[str, tuple[Fn, tuple[int, ...]]] = {
    "scatter": (lambda x: x.scatter(1, rows(x, PLACES), x[:, 1:]), (4,)),
    "scatter, less of a side": (
        lambda x: x.scatter(1, torch.zeros_like(x[:, :1, :2]).long() + 2, x[:, :1, :2] * 2),
        (4, 3),
    ),
    "scatter a number": (lambda x: torch.scatter(x, 1, rows(x, TWICE), 1.5), (4,)),
    "scatter_add": (lambda x: x.scatter_add(1, rows(x, TWICE), x[:, 1:]), (4,)),
    "scatter_reduce": (
        lambda x: (
            torch.zeros_like(x).scatter_reduce(1, rows(x, TWICE), x[:, 1:], "mean")
            + x.scatter_reduce(1, rows(x, TWICE), x[:, 1:], "amax")
            - x.scatter_reduce(1, rows(x, TWICE), x[:, 1:], "sum", include_self=False)
        ),
        (4,),
    ),
    "index_add": (lambda x: torch.zeros_like(x).index_add_(1, TWICE, x[:, 1:], alpha=2.0), (4,)),
    "index_copy": (lambda x: x.index_copy(1, PLACES, x[:, :3] * 2.0), (4,)),
    "index_fill": (lambda x: x.index_fill(1, TWICE, 0.5), (4,)),
    "index_put": (
        lambda x: (
            torch.index_put(x.mT, (PLACES,), x.mT[1:], accumulate=True).mT if x.dim() == 2 else x
        ),
        (2, 4),
    ),
    "index_put twice": (
        lambda x: torch.ops.aten.index_put(x, [None, PLACES, PLACES], x[:, 0, :3]),
        (4, 4),
    ),
    "writes": (overwritten, (4,)),
    "select_scatter": (lambda x: torch.select_scatter(x, x[:, 0] * 2.0, 1, -1), (4, 3)),
    "slice_scatter": (lambda x: torch.slice_scatter(x, x[:, :2] * 2.0, 1, 0, 4, 2), (4, 3)),
    "diagonals": (
        lambda x: torch.diagonal_scatter(x, x[:, 0], 0, 1, 2) + torch.diag_embed(x[:, 1]),
        (4, 4),
    ),
}

LOSSES: dict[str, tuple[Fn, tuple[int, ...]]] = {
    "cross_entropy": (lambda x: F.cross_entropy(x, labels(x), reduction="none"), (4,)),
    "cross_entropy, smoothed and weighted": (
        lambda x: F.cross_entropy(
            x, labels(x), WEIGHTS.to(x.dtype), label_smoothing=0.1, reduction="none"
        ),
        (4,),
    ),
    "cross_entropy of pixels": (
        lambda x: F.cross_entropy(x, labels(x, 2, 2), ignore_index=3, reduction="none"),
        (3, 2, 2),
    ),
    "cross_entropy, chances": (
        lambda x: F.cross_entropy(x, torch.full_like(x, 0.25), reduction="none"),
        (4,),
    ),
    "nll_loss": (lambda x: F.nll_loss(F.log_softmax(x, 1), labels(x), reduction="none"), (4,)),
    "distances": (
        lambda x: (
            F.mse_loss(x, x.flip(1), reduction="none")
            + F.l1_loss(x, torch.ones_like(x), reduction="none")
            + F.smooth_l1_loss(x, torch.ones_like(x), reduction="none", beta=0.5)
            + F.huber_loss(x, torch.ones_like(x), reduction="none", delta=0.7)
        ),
        (4,),
    ),
    "binary": (
        lambda x: (
            F.binary_cross_entropy_with_logits(x, MASK.to(x.dtype).expand_as(x), reduction="none")
            + F.binary_cross_entropy(
                torch.sigmoid(x), torch.full_like(x, 0.3), WEIGHTS.to(x.dtype), reduction="none"
            )
        ),
        (4,),
    ),
    "divergence": (
        lambda x: (
            F.kl_div(F.log_softmax(x, 1), torch.full_like(x, 0.25), reduction="none")
            + F.soft_margin_loss(x, torch.ones_like(x), reduction="none")
        ),
        (4,),
    ),
}

OTHERS: dict[str, tuple[Fn, tuple[int, ...]]] = {
    "addcmul": (
        lambda x: (
            torch.addcmul(x, x, x.flip(1), value=0.3) - torch.addcdiv(x, x, x.flip(1).abs() + 2.0)
        ),
        (4,),
    ),
    "lerp": (
        lambda x: torch.lerp(x, x.flip(1), 0.3) + torch.lerp(x, x.flip(1), torch.sigmoid(x)),
        (4,),
    ),
    "hypot": (lambda x: torch.hypot(x, x.flip(1)), (4,)),
    "cross": (lambda x: torch.linalg.cross(x, x.flip(1)), (3,)),
    "tensordot": (
        lambda x: torch.tensordot(x, MATRIX.to(x.dtype), dims=([2], [0])),
        (3, 4),
    ),
    "kron": (lambda x: torch.kron(x, torch.ones(1, 2, dtype=x.dtype)), (4,)),
    "cosine_similarity": (lambda x: F.cosine_similarity(x, x.flip(1) + 2.0, dim=1), (4, 3)),
    "distances between rows": (
        lambda x: torch.cdist(x, x.flip(2)) + F.pairwise_distance(x, x + 1.0).unsqueeze(1),
        (3, 4),
    ),
    "prod": (lambda x: x.prod(1, keepdim=True) + x.cumprod(1), (4,)),
    "local_response_norm": (
        lambda x: F.local_response_norm(x, 3, alpha=0.5, k=2.0),
        (4, 2, 2),
    ),
    "norms": (
        lambda x: (
            F.normalize(x, p=1.0, dim=1)
            + F.normalize(x, p=float("inf"), dim=1)
            + torch.linalg.matrix_norm(x)[:, None, None]
        ),
        (4, 3),
    ),
    "fixed index": (lambda x: x[:, torch.tensor([3.0, 1.0, 2.0]).argmax()], (4, 2)),
    "softmin": (lambda x: F.softmin(x, 1), (4,)),
}

CASES = SCATTERS | LOSSES | OTHERS


@pytest.mark.parametrize("name", CASES)
def test_bounds_enclose(name: str) -> None:
    fn, shape = CASES[name]
    generator = torch.Generator().manual_seed(3)
    center = torch.randn(3, *shape, generator=generator)
    radius = torch.rand(center.shape, generator=generator) * 0.3
    region = bg.Box(center - radius, center + radius)
    methods = ("ibp", "crown-ibp", "crown")
    check_model(Apply(fn), region, methods=methods, points=12, dynamic_batch=True)


@pytest.mark.parametrize("name", ["scatter", "index_copy", "writes", "cross_entropy", "cross"])
def test_both_frontends_mean_the_same(name: str) -> None:
    fn, shape = CASES[name]
    model, x = Apply(fn).double(), torch.randn(3, *shape, dtype=torch.float64)
    for frontend in ("torch_fx", "torch_export"):
        bounds = bg.bound(model, method="ibp", frontend=frontend)(bg.Box(x, x))
        torch.testing.assert_close((bounds.lower + bounds.upper) / 2, model(x))


def test_means_of_losses_are_those_of_torch() -> None:
    x, y = torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 3, 1])
    weight = WEIGHTS
    losses: list[Fn] = [
        lambda x: F.cross_entropy(x, y, weight, label_smoothing=0.2),
        lambda x: F.cross_entropy(x, y, weight, ignore_index=3, label_smoothing=0.2),
        lambda x: F.cross_entropy(x, x.detach().softmax(1).clone() * 0 + 0.25, weight),
        lambda x: F.nll_loss(x, y, weight, ignore_index=0),
        lambda x: F.cross_entropy(x, y, reduction="sum"),
        lambda x: F.huber_loss(x, torch.zeros_like(x), delta=0.3),
    ]
    for loss in losses:
        bounds = bg.bound(_of(loss), method="ibp", dynamic_batch=False)(bg.Box(x, x))
        torch.testing.assert_close((bounds.lower + bounds.upper) / 2, loss(x))


def _of(fn: Fn) -> nn.Module:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return fn(x)

    return Model()


def test_a_place_that_is_written_twice_has_no_bounds() -> None:
    """torch takes either element there, so that no bound of one of them would be right."""
    model = _of(lambda x: x.index_copy(1, TWICE, x[:, 1:] * 2.0))
    with pytest.raises(NonFiniteError):
        bg.bound(model, method="ibp")(bg.LinfBall(torch.randn(2, 4), 0.1))
    model = _of(lambda x: x.scatter(1, rows(x, TWICE), x[:, 1:] * 2.0))
    with pytest.raises(NonFiniteError):
        bg.bound(model, method="ibp")(bg.LinfBall(torch.randn(2, 4), 0.1))


def test_what_is_normalized_is_no_longer_than_one() -> None:
    region = bg.LinfBall(torch.randn(3, 4) * 0.1, 5.0)
    for p in (1.0, 2.0, float("inf")):
        bounds = bg.bound(_of(lambda x, p=p: F.normalize(x, p=p)), method="ibp")(region)
        largest = torch.maximum(bounds.lower.abs(), bounds.upper.abs()).max()
        assert float(largest) <= 1.0 + 4 * torch.finfo(torch.float32).eps


def test_an_index_that_depends_on_the_input_is_refused() -> None:
    model = _of(lambda x: x.scatter(1, x.argmax(1, keepdim=True), 1.0))
    with pytest.raises(UnsupportedError):
        bg.bound(model, method="ibp")(bg.LinfBall(torch.randn(2, 4), 0.1))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.relu(x) * 2.0

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


def test_a_function_of_autograd_is_captured() -> None:
    """Its arguments are taken apart in C++, where a tracer's stand-in crashed Python."""
    model = _of(lambda x: Doubled.apply(x) + 1.0)  # type: ignore[no-untyped-call]
    check_model(model, bg.LinfBall(torch.randn(3, 4), 0.2), methods=("ibp", "crown"), points=8)
