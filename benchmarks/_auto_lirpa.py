"""auto_LiRPA (Verified-Intelligence/auto_LiRPA) as benchmarks call it.

It is made for torch below 2.9. On a newer one its converter's symbolics are loaded by
hand, and `torch.clamp`, whose gradient at the ends of the range has become 0, gets its
former gradient while slopes are optimised: with 0 they would never leave their start.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EXPORTER = "torch.onnx._internal.torchscript_exporter"


def load() -> Any:
    """The module.

    Raises:
        ImportError: it cannot be imported.
    """
    for version in (9, 10, 11, 12, 13):
        with contextlib.suppress(ImportError):
            importlib.import_module(f"{_EXPORTER}.symbolic_opset{version}")
    return importlib.import_module("auto_LiRPA")


def nine_rows(y: Tensor) -> Tensor:
    """`[batch, 9, 10]`: the label's logit minus each other one."""
    eye = torch.eye(10, device=y.device)
    rows = eye[y].unsqueeze(1) - eye.unsqueeze(0)
    others = torch.arange(10, device=y.device) != y.unsqueeze(1)
    return rows[others].unflatten(0, (len(y), 9))


@contextlib.contextmanager
def _former_clamp() -> Iterator[None]:
    real = torch.clamp

    def clamp(x: Tensor, min: Any = None, max: Any = None, **rest: Any) -> Tensor:
        if not x.requires_grad or isinstance(min, Tensor) or isinstance(max, Tensor):
            return real(x, min, max, **rest)
        # The gradient of the slopes, which are clamped after each step, passes.
        return x + (real(x.detach(), min, max) - x.detach())

    torch.clamp = clamp  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.clamp = real


class Peer:
    """Bounds of one network by auto_LiRPA.

    Args:
        model: shares its parameters.
        x: an example batch.
        options: its `bound_opts`.
    """

    def __init__(self, model: nn.Module, x: Tensor, **options: Any) -> None:
        self.library = load()
        self.model = self.library.BoundedModule(model, x, bound_opts=options, device=x.device)

    def ball(self, x: Tensor, eps: float) -> Any:
        ends = {"x_L": (x - eps).clamp(0, 1), "x_U": (x + eps).clamp(0, 1)}
        perturbation = self.library.PerturbationLpNorm(norm=float("inf"), **ends)
        return self.library.BoundedTensor(x, perturbation)

    def margins(self, x: Tensor, y: Tensor, eps: float, method: str) -> Tensor:
        """Lower bounds `[batch, 9]`."""
        searching = _former_clamp() if method == "alpha-CROWN" else contextlib.nullcontext()
        with searching:
            lower, _ = self.model.compute_bounds(
                x=(self.ball(x, eps),), C=nine_rows(y), method=method, bound_upper=False
            )
        return lower


def crown_ibp_loss(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Callable[[], Tensor]:
    """Half the clean loss and half the cross-entropy at its crown-ibp margins."""
    peer = Peer(model, x)

    def compute() -> Tensor:
        lower = peer.margins(x, y, eps, "CROWN-IBP")
        padded = torch.cat([torch.zeros_like(lower[:, :1]), lower], 1)
        bound = F.cross_entropy(-padded, torch.zeros_like(y))
        return 0.5 * F.cross_entropy(model(x), y) + 0.5 * bound

    return compute


def fused_loss(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Callable[[], Tensor]:
    """Half the clean loss and half its fused bound, as in its own example for training."""
    library = load()
    wrapped = library.CrossEntropyWrapper(model)
    bounded = library.BoundedModule(
        wrapped, (x, y), bound_opts={"loss_fusion": True}, device=x.device
    )
    ball = Peer.__new__(Peer)
    ball.library = library
    exponential = next(m for m in bounded.modules() if type(m).__name__ == "BoundExp")

    def compute() -> Tensor:
        inputs = (ball.ball(x, eps), y)
        # Its example runs the concrete network first: bounds reuse what that leaves behind.
        bounded(*inputs)
        bounded.compute_bounds(x=inputs, IBP=True, C=None, method=None)
        _, upper = bounded.compute_bounds(
            IBP=False, C=None, method="backward", bound_lower=False, bound_upper=True
        )
        bound = (torch.log(upper) + exponential.max_input).mean()
        return 0.5 * F.cross_entropy(model(x), y) + 0.5 * bound

    return compute
