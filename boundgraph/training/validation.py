"""Clean and certified accuracy on held-out images, as measured between epochs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from boundgraph.compiler import compile
from boundgraph.domains.regions import ball, ball_interval
from boundgraph.domains.specs import Margin
from boundgraph.errors import ConfigError, DataError, SpecError
from boundgraph.runtime.module import BoundProgram
from boundgraph.training._programs import count_classes

CHUNK = 256


class Validation:
    """Measures a model on fixed images; the model's modes are as before afterwards.

    Args:
        model: the user's module, not a wrapper.
        x, y: images and labels on the model's device.
        eps: radius, in input units.
        method: bound method.
        clip: range of valid inputs, None for no limit.
        norm: of the balls of radius ε.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        eps: float,
        method: str,
        clip: tuple[float, float] | None,
        norm: float = math.inf,
    ) -> None:
        self.norm = norm
        self.model, self.x, self.y, self.clip = model, x, y, clip
        self.eps, self.method = eps, method
        self._program: BoundProgram | None = None

    def measure(self) -> dict[str, float]:
        """`test_clean` and `test_certified` as fractions.

        Raises:
            ConfigError: autocast is on; bounds in half precision prove nothing.
        """
        if torch.is_autocast_enabled(self.x.device.type):
            raise ConfigError(
                "certifying under autocast is refused: bounds in reduced precision prove nothing. "
                "Leave the autocast region first"
            )
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            return self._measure()
        finally:
            for module, mode in modes:
                module.training = mode

    @torch.no_grad()
    def _measure(self) -> dict[str, float]:
        if self._program is None:
            example = self.x[:2]
            classes = count_classes(self.model, example)
            around = ball(example, 0.0, self.norm)
            self._program = compile(self.model, around, method=self.method, spec=Margin(classes))
        clean = certified = 0
        for start in range(0, len(self.y), CHUNK):
            x, y = self.x[start : start + CHUNK], self.y[start : start + CHUNK]
            right = self.model(x).argmax(1) == y
            region = ball_interval(x, self.eps, self.norm, self.clip)
            margins = self._program.run((region,), y).lower
            # Row y is exactly 0; NaN compares false and so never certifies.
            proved = (margins > 0).sum(1) == margins.shape[1] - 1
            clean += int(right.sum())
            certified += int((proved & right).sum())
        return {"test_clean": clean / len(self.y), "test_certified": certified / len(self.y)}


def check_fit(model: nn.Module, x: Tensor, classes: int) -> None:
    """Raise unless the model takes these images and tells this many classes apart.

    Args:
        model: maps `[batch, ...]` to `[batch, classes]`.
        x: two or more images.
        classes: number of classes of the data.

    Raises:
        DataError: the images do not fit the model, or it has fewer outputs than classes.
        SpecError: the output is no `[batch, classes]` tensor.
    """
    try:
        outputs = count_classes(model, x)
    except SpecError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        shape = "×".join(map(str, x.shape[1:]))
        raise DataError(
            f"the model does not take images of {shape} (channels × height × width): {error}"
        ) from error
    if outputs < classes:
        raise DataError(
            f"the model has {outputs} outputs, but the data has {classes} classes; labels would be "
            "out of range"
        )


def count_flops(model: nn.Module, x: Tensor) -> int:
    """Floating-point operations of one forward pass for one image; nothing is computed."""
    from torch.utils.flop_counter import FlopCounterMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        fakes: dict[str, Tensor] = {
            name: mode.from_tensor(tensor.detach()) for name, tensor in tensors.items()
        }
        counter = FlopCounterMode(display=False)
        with counter:
            torch.func.functional_call(model, fakes, (mode.from_tensor(x[:2].detach()),))
    return int(counter.get_total_flops()) // 2
