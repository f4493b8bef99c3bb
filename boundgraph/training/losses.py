"""Training losses: the clean one, and MixTrain's stochastic mix of clean and bound.

`MixedLoss` is `(1 − α)·CE(f(x), y) + α·CE(worst-case logits of k random samples, y)`. The
worst-case logit j is the largest value of `f_j − f_y` over the region and 0 at y, so its
cross-entropy bounds the loss of every attack. Bounding k samples instead of the batch is
MixTrain's stochastic robust approximation (arXiv 1811.02625): an unbiased estimate of the
batch's bound loss at a fraction of the cost.

ε and α are 0-d tensors changed in place, and the samples are drawn outside the traced
computation, so nothing here makes `torch.compile` compile again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boundgraph.compiler import TRAINING_METHODS
from boundgraph.domains.interval import Interval
from boundgraph.domains.regions import ball_interval
from boundgraph.domains.specs import OtherMargins
from boundgraph.errors import ConfigError, DataError, NonFiniteError, SpecError
from boundgraph.runtime.module import BoundProgram
from boundgraph.training._clean import move_statistics
from boundgraph.training._dropout import draw_masks, drops
from boundgraph.training._fusion import clean_losses, fused_bound, margin_bound
from boundgraph.training._portions import in_portions, portions
from boundgraph.training._programs import ProgramCache, inner_module
from boundgraph.training.controllers import ConstantController, Controller, make_controller


class LossParts(NamedTuple):
    """What a loss measured on one batch; 0-d tensors, all but `loss` detached.

    `certified_accuracy` is over the samples whose bounds were computed, and 0 for a loss
    that bounds none; `bound_loss` is then 0 as well.
    """

    loss: Tensor
    clean_loss: Tensor
    bound_loss: Tensor
    clean_accuracy: Tensor
    certified_accuracy: Tensor


def _epsilon(value: float) -> float:
    if isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise ConfigError(f"eps must be a finite number >= 0, got {value!r}")
    return float(value)


def _fraction(name: str, value: float) -> float:
    if isinstance(value, bool) or not 0.0 <= value <= 1.0:
        raise ConfigError(f"{name} must lie in [0, 1], got {value!r}")
    return float(value)


def _alpha(value: float) -> float:
    return _fraction("alpha", value)


class TrainingLoss(nn.Module):
    """A loss as `compile_step` and `fit` use it; by itself the clean cross-entropy.

    Args:
        model: maps `[batch, ...]` to logits `[batch, classes]`; may be wrapped in DDP.
        eps: radius in input units.
        alpha: weight of the robust part, in [0, 1].
        clip: range of valid inputs, None for no limit.
        norm: of the balls of radius ε: `math.inf`, 2, 1 or any p >= 1.
    """

    eps: Tensor
    alpha: Tensor

    def __init__(
        self,
        model: nn.Module,
        eps: float = 0.0,
        *,
        alpha: float = 0.0,
        clip: tuple[float, float] | None = (0.0, 1.0),
        norm: float = math.inf,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise ConfigError(f"model must be an nn.Module, got {type(model).__name__}")
        if clip is not None and not (len(clip) == 2 and clip[0] < clip[1]):
            raise ConfigError(f"clip must be (low, high) with low < high, or None; got {clip!r}")
        self.model = model
        self.clip = None if clip is None else (float(clip[0]), float(clip[1]))
        if isinstance(norm, bool) or not norm >= 1:
            raise ConfigError(f"norm must be math.inf or a number >= 1, got {norm!r}")
        self.norm = float(norm)
        first = next(iter(model.parameters()), torch.zeros(()))
        dtype = torch.float64 if first.dtype == torch.float64 else torch.float32

        def number(value: float) -> Tensor:
            return torch.tensor(value, dtype=dtype, device=first.device)

        # Not persistent: a checkpoint stores them through training_state().
        self.register_buffer("eps", number(_epsilon(eps)), persistent=False)
        self.register_buffer("alpha", number(_alpha(alpha)), persistent=False)

    def set(self, *, eps: float | None = None, alpha: float | None = None) -> None:
        """Change ε or α in place; compiled steps see the new values without recompiling.

        Raises:
            ConfigError: `eps < 0`, `alpha` outside [0, 1], or not a number.
        """
        if eps is not None:
            self.eps.fill_(_epsilon(eps))
        if alpha is not None:
            self.alpha.fill_(_alpha(alpha))

    def draw(self, batch: int) -> Tensor | None:
        """Indices of the samples to bound, or None for all; here there are none to choose."""
        return None

    def prepare(self, x: Tensor, y: Tensor) -> None:
        """Do what must happen outside a traced region (compile the bound program)."""

    def perturb(self, x: Tensor, y: Tensor) -> Tensor:
        """The input to train on; an adversarial loss attacks here, outside the region."""
        return x

    def compute(self, x: Tensor, y: Tensor, index: Tensor | None) -> LossParts:
        """The loss without checks: plain tensor code, traceable, no synchronisation.

        Args:
            x: `[batch, ...]`, already passed through `perturb`.
            y: `[batch]` integer labels.
            index: from `draw`.
        """
        logits = self.model(x)
        loss = F.cross_entropy(logits, y)
        zero = torch.zeros_like(loss).detach()
        return LossParts(loss, loss.detach(), zero, _accuracy(logits, y), zero)

    def forward(
        self, x: Tensor, y: Tensor, *, return_parts: bool = False, index: Tensor | None = None
    ) -> Tensor | LossParts:
        """The loss of a batch, a 0-d tensor to call `backward()` on.

        Under the user's own `torch.compile`, call `prepare(x, y)` once before. Checks and
        the non-finite test then do not run.

        Args:
            x: inputs `[batch, ...]`.
            y: labels `[batch]`.
            return_parts: return `LossParts` instead.
            index: samples to bound; drawn where None.

        Raises:
            DataError, SpecError: the batch does not fit the model.
            NonFiniteError: the input or the loss is NaN or infinite; says which.
        """
        tracing = torch.compiler.is_compiling()
        if not tracing:
            self.check_batch(x, y)
        if index is None:
            index = self.draw(x.shape[0])
        parts = self.compute(self.perturb(x, y), y, index)
        if not tracing and not bool(torch.isfinite(parts.loss.detach())):
            raise NonFiniteError(self.diagnose(parts))
        return parts if return_parts else parts.loss

    def check_batch(self, x: Tensor, y: Tensor) -> None:
        """Prepare, and raise unless this loss can use `(x, y)`. Values cost one pass over x."""
        if not x.is_floating_point():
            raise DataError(f"inputs have dtype {x.dtype}; convert first, e.g. x.float() / 255")
        if y.dtype != torch.int64 or y.dim() != 1 or x.dim() < 1 or y.shape[0] != x.shape[0]:
            raise SpecError(
                f"labels must be int64 of shape [{x.shape[0] if x.dim() else 'batch'}], got "
                f"{y.dtype}{list(y.shape)}"
            )
        if x.numel() == 0:
            raise DataError(f"empty batch: inputs have shape {list(x.shape)}")
        low, high = (float(end) for end in torch.aminmax(x.detach()))
        if not (math.isfinite(low) and math.isfinite(high)):
            bad = int((~torch.isfinite(x)).sum())
            raise NonFiniteError(f"the input batch holds {bad} NaN or infinite element(s)")
        if self.clip is not None and not (self.clip[0] <= low and high <= self.clip[1]):
            raise DataError(
                f"inputs range over [{low:g}, {high:g}], outside clip={self.clip}. Regions are in "
                "the units the model receives: pass the matching clip, or clip=None"
            )
        if int(y.min()) < 0:
            raise SpecError(f"labels out of range: the smallest is {int(y.min())}")
        self.prepare(x, y)

    def diagnose(self, parts: LossParts) -> str:
        """Name what is not finite."""
        for name, tensor in self.model.named_parameters():
            if not bool(torch.isfinite(tensor).all()):
                return f"the weight {name!r} holds NaN or infinity; the run has diverged"
        names = [n for n in ("clean_loss", "bound_loss") if not torch.isfinite(getattr(parts, n))]
        which = " and ".join(name.replace("_", " ") for name in names) or "loss"
        return (
            f"the {which} is not finite at eps={float(self.eps):g}, alpha={float(self.alpha):g} "
            f"(clean loss {float(parts.clean_loss):g}, bound loss {float(parts.bound_loss):g}) "
            "although all weights are; lower the learning rate, ramp eps more slowly or clip "
            "gradients"
        )

    def end_epoch(self, epoch_metrics: Mapping[str, float]) -> float:
        """Let the controller move α, if there is one; returns α."""
        return float(self.alpha)

    def training_state(self) -> dict[str, Any]:
        """Everything beside the weights that a resumed run needs."""
        return {"eps": float(self.eps), "alpha": float(self.alpha)}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `training_state()`."""
        self.set(eps=state["eps"], alpha=state["alpha"])


class MixedLoss(TrainingLoss):
    """`(1 − α)·CE(model(x), y) + α·CE(worst-case logits of k random samples, y)`.

    The bound program is compiled when first needed, once per shape of a sample, dtype,
    device and state of the model's attributes (its training mode among them), and used for
    every batch size. Dropout layers (`nn.Dropout`, `nn.Dropout1d` to `3d`) in training mode draw
    one mask for the batch, which the clean pass and the bounds share.

    Args:
        model: maps `[batch, ...]` to logits `[batch, classes]`. Wrapped in DDP, the clean
            pass goes through the wrapper and bounds use the parameters inside.
        eps: radius of the regions, in input units.
        method: `"ibp"`, `"symbolic"`, `"mix"`, `"crown-ibp"` or `"crown"`.
        subset: k, the number of samples bounded per batch; None for all. A batch smaller
            than k is bounded whole.
        alpha: weight of the bound loss; ignored where `controller` is given.
        controller: a `Controller` or the name of one; moves α in `end_epoch`.
        clip: range of valid inputs, None for no limit.
        norm: of the balls of radius ε: `math.inf`, 2, 1 or any p >= 1.
        train_eps: factor on ε while training (training for a slightly larger radius
            certifies better at the nominal one).
        fused: bound the cross-entropy itself: one backward row instead of one per class
            (Xu et al., loss fusion, arXiv 2002.12920). Needs `"crown-ibp"`.
        beta: weight of the backward bounds against interval bounds, in [0, 1], moved by
            `set(beta=...)`: CROWN-IBP's ramp (arXiv 1906.06316). None for backward alone.
        seed: draws come from an own generator with this seed; None uses torch's default
            generator. Under your own `torch.compile(fullgraph=True)` use None or pass
            `index=loss.draw(len(x))`.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> loss_fn = MixedLoss(model, eps=0.1, subset=2, alpha=0.5)
        >>> loss = loss_fn(torch.rand(6, 4), torch.randint(0, 3, (6,)))
        >>> loss.backward()
    """

    beta: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        eps: float,
        *,
        method: str = "ibp",
        subset: int | None = 16,
        alpha: float = 0.5,
        controller: Controller | str | None = None,
        clip: tuple[float, float] | None = (0.0, 1.0),
        norm: float = math.inf,
        train_eps: float = 1.0,
        fused: bool = False,
        beta: float | None = None,
        seed: int | None = None,
    ) -> None:
        if isinstance(controller, str):
            controller = make_controller(controller, alpha=alpha)
        self_controller = controller or ConstantController(_alpha(alpha))
        super().__init__(model, eps, alpha=self_controller.alpha, clip=clip, norm=norm)
        if method not in TRAINING_METHODS:
            known = ", ".join(TRAINING_METHODS)
            raise ConfigError(f"no training with method {method!r}; choose one of {known}")
        if subset is not None and (isinstance(subset, bool) or subset < 1):
            raise ConfigError(f"subset must be a positive whole number or None, got {subset!r}")
        if not (math.isfinite(train_eps) and train_eps > 0):
            raise ConfigError(f"train_eps must be a positive factor, got {train_eps!r}")
        if fused and method != "crown-ibp":
            raise ConfigError(f"fused=True needs method='crown-ibp', got {method!r}")
        if beta is not None and method not in ("crown-ibp", "crown"):
            raise ConfigError(f"beta mixes backward with interval bounds; {method!r} has none")
        self.method, self.subset, self.train_eps = method, subset, float(train_eps)
        self.fused = fused
        # A 0-d tensor, so that its ramp compiles nothing anew.
        value = None if beta is None else torch.full_like(self.eps, _fraction("beta", beta))
        self.register_buffer("beta", value, persistent=False)
        self.controller = self_controller
        self.generator: torch.Generator | None = None
        if seed is not None:
            self.generator = torch.Generator(device=self.eps.device).manual_seed(seed)
        # Whose launch-saving passes to use: the batch's device where None.
        self.tune_for: str | None = None
        self._cache = ProgramCache()

    def set(
        self, *, eps: float | None = None, alpha: float | None = None, beta: float | None = None
    ) -> None:
        """Change ε, α or β in place.

        Raises:
            ConfigError: a value out of range, or β of a loss without one.
        """
        super().set(eps=eps, alpha=alpha)
        if beta is None:
            return
        if self.beta is None:
            raise ConfigError("this loss has no beta: pass beta= when making it")
        self.beta.fill_(_fraction("beta", beta))

    def draw(self, batch: int) -> Tensor | None:
        """k distinct indices drawn uniformly on the device; None where all are used."""
        if self.subset is None or self.subset >= batch:
            return None
        noise = torch.rand(batch, device=self.eps.device, generator=self.generator)
        return noise.topk(self.subset).indices

    @property
    def program(self) -> BoundProgram:
        """The bound program in use.

        Raises:
            ConfigError: none was compiled yet.
        """
        if self._cache.active is None:
            raise ConfigError(
                "the bound program is not compiled yet: call loss.prepare(x, y) once before "
                "torch.compile"
            )
        return self._cache.active

    def prepare(self, x: Tensor, y: Tensor) -> None:
        """Compile the bound program for this kind of batch, unless that is done.

        Raises:
            CaptureError, UnsupportedError: the model cannot be captured or bounded.
            SpecError: the model's output is not `[batch, classes]`.
        """
        tracks = self.beta is not None
        model = inner_module(self.model)
        if model is not self.model and drops(model):
            raise ConfigError(
                "dropout in training mode is not supported in a DistributedDataParallel wrapper, "
                "whose own pass would draw other masks; put the dropout layers into evaluation mode"
            )
        self._cache.select(
            model,
            x,
            self.method,
            norm=self.norm,
            fused=self.fused,
            tracks=tracks,
            tune_for=self.tune_for,
        )

    def check_batch(self, x: Tensor, y: Tensor) -> None:
        super().check_batch(x, y)
        classes, largest = self._cache.classes, int(y.max())
        if largest >= classes:
            raise SpecError(f"labels out of range: {largest}, but the model has {classes} classes")

    def region(self, x: Tensor) -> Interval:
        """The input region around `x`, unchecked and traceable."""
        return ball_interval(x, self.eps * self.train_eps, self.norm, self.clip)

    def compute(self, x: Tensor, y: Tensor, index: Tensor | None) -> LossParts:
        chosen_x, chosen_y = (x, y) if index is None else (x[index], y[index])
        if self._apart(x):
            # The clean pass last: what it keeps does not wait beside what bounds keep.
            bound_loss, certified = self._bounds_alone(chosen_x, chosen_y)
            logits = self.model(x)
        else:
            logits, outputs = self._clean_and_bounds(x, chosen_x, chosen_y, index)
            bound_loss, certified = self._measured(outputs)
        clean_loss = clean_losses(logits, y).mean()
        loss = (1.0 - self.alpha) * clean_loss + self.alpha * bound_loss
        return LossParts(
            loss,
            clean_loss.detach(),
            bound_loss.detach(),
            _accuracy(logits, y),
            certified.detach(),
        )

    def _measured(self, outputs: Interval | tuple[Interval, ...]) -> tuple[Tensor, Tensor]:
        """The bound loss and the certified share."""
        if self.fused:
            assert isinstance(outputs, tuple)
            return fused_bound(outputs, self.beta)
        others = isinstance(self.program.spec, OtherMargins)
        return margin_bound(outputs, self.beta, others=others)

    def _apart(self, x: Tensor) -> bool:
        """Whether samples may be bounded in portions, without the clean batch."""
        return not (
            torch.compiler.is_compiling()
            or self._cache.masks
            or self._cache.normalizations is not None
            or self.program.needs_clean
            or torch.is_autocast_enabled(x.device.type)
            # Gradients of portions are taken for parameters alone.
            or any(value.requires_grad for value in self.buffers())
            or any(value.requires_grad for value in self.program.constants.tensors().values())
        )

    def _bounds_alone(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        def measure(part: slice) -> tuple[Tensor, Tensor]:
            outputs = self.program.run((self.region(x[part]),), y[part], ())
            return self._measured(outputs)

        parameters = [p for p in self.model.parameters() if p.requires_grad]
        return in_portions(measure, portions(self.program.ir, x, parameters), parameters)

    def _clean_and_bounds(
        self, x: Tensor, chosen_x: Tensor, chosen_y: Tensor, index: Tensor | None
    ) -> tuple[Tensor, Interval | tuple[Interval, ...]]:
        """Logits of the batch, and what the program bounds of the chosen samples."""
        if self._cache.masks:
            return self._masked(x, chosen_x, chosen_y, index)
        program, regions = self.program, (self.region(chosen_x),)
        modules = self._cache.normalizations
        if modules is None:
            logits = self.model(x)
            clean = (x,) if program.needs_clean else ()
            return logits, program.run(regions, chosen_y, clean)
        margins, logits, *statistics = program.run(regions, chosen_y, (x,))
        if inner_module(self.model) is not self.model or torch.is_autocast_enabled(x.device.type):
            return self.model(x), margins
        move_statistics(modules, statistics)
        return logits, margins

    def _masked(
        self, x: Tensor, chosen_x: Tensor, chosen_y: Tensor, index: Tensor | None
    ) -> tuple[Tensor, Interval]:
        """The same under dropout: bounds of a sample take the masks of its clean pass."""
        masks = draw_masks(self._cache.masks, x)
        chosen = masks if index is None else tuple(mask[index] for mask in masks)
        inputs: tuple[Interval | Tensor, ...] = (self.region(chosen_x), *chosen)
        margins, logits, *statistics = self.program.run(inputs, chosen_y, (x, *masks))
        move_statistics(self._cache.normalizations or (), statistics)
        return logits, margins

    def end_epoch(self, epoch_metrics: Mapping[str, float]) -> float:
        """Let the controller move α by the epoch's metrics; returns the new α."""
        self.set(alpha=self.controller.update(epoch_metrics))
        return self.controller.alpha

    def training_state(self) -> dict[str, Any]:
        state = super().training_state()
        state["controller"] = self.controller.state_dict()
        state["beta"] = None if self.beta is None else float(self.beta)
        state["generator"] = None if self.generator is None else self.generator.get_state()
        return state

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        super().load_training_state(state)
        self.controller.load_state_dict(state["controller"])
        self.set(beta=state.get("beta"))
        if (state["generator"] is None) != (self.generator is None):
            raise ConfigError("the saved run and this one differ in whether the loss has a seed")
        if self.generator is not None:
            self.generator.set_state(state["generator"])


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(1) == labels).to(logits.dtype).mean()


def gradient_norms(loss_fn: MixedLoss, x: Tensor, y: Tensor) -> dict[str, float]:
    """Norms of the clean and the bound loss's gradients on one batch, for `balanced`.

    Two backward passes; `.grad` fields are left alone.
    """
    norms: dict[str, float] = {}
    before = float(loss_fn.alpha)
    parameters = [p for p in loss_fn.model.parameters() if p.requires_grad]
    index = loss_fn.draw(x.shape[0])
    try:
        for name, alpha in (("clean_grad_norm", 0.0), ("bound_grad_norm", 1.0)):
            loss_fn.set(alpha=alpha)
            parts = loss_fn(x, y, return_parts=True, index=index)
            grads = torch.autograd.grad(parts.loss, parameters, allow_unused=True)
            squares = [g.detach().square().sum() for g in grads if g is not None]
            norms[name] = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
    finally:
        loss_fn.set(alpha=before)
    return norms
