"""What attacks share: checked problems, the best point so far, and the result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boundgraph.domains.balls import BallInterval, ball_size, inside_ball, samples_of, steepest
from boundgraph.domains.interval import Interval
from boundgraph.domains.regions import LinfBall, LpBall
from boundgraph.domains.specs import Margin
from boundgraph.errors import ConfigError, DataError, InternalError, NonFiniteError, SpecError

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class AttackResult:
    """What an attack found.

    Args:
        x_adv: shaped like `x`; per sample the point of the smallest margin met. Inside the
            ball and the clip range.
        broken: `[batch]` bool: at `x_adv` the label's logit is not above all others. A tie
            counts as broken, as it does not count as certified.
        margin: `[batch]`, label's logit minus the best other one, at `x_adv`, from a last
            run of the model there.
        gradient_evaluations: gradients of single samples, summed over the batch.
        bound_evaluations: bound propagations of single samples, summed over the batch.
        seconds: wall-clock time.
    """

    x_adv: Tensor
    broken: Tensor
    margin: Tensor
    gradient_evaluations: int
    bound_evaluations: int
    seconds: float


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """`[batch]`: the label's logit minus the largest other one."""
    own = logits.gather(1, labels.unsqueeze(1))
    others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
    return own.squeeze(1) - others.amax(1)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="sum")


def _negative_margin(logits: Tensor, labels: Tensor) -> Tensor:
    return -margins(logits, labels).sum()


def _logits_ratio(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference-of-logits ratio (Croce & Hein 2020, arXiv 2003.01690): scale-free."""
    ordered = logits.sort(1, descending=True).values
    return -(margins(logits, labels) / (ordered[:, 0] - ordered[:, 2] + 1e-12)).sum()


LOSSES: dict[str, Loss] = {"ce": _cross_entropy, "margin": _negative_margin, "dlr": _logits_ratio}


def find_loss(name: str, classes: int) -> Loss:
    """The loss that an attack maximises.

    Raises:
        ConfigError: an unknown name, or `dlr` with fewer than three classes.
    """
    if name not in LOSSES:
        raise ConfigError(f"unknown attack loss {name!r}; choose one of {', '.join(LOSSES)}")
    if name == "dlr" and classes < 3:
        raise ConfigError("the loss 'dlr' needs at least 3 classes; use 'margin'")
    return LOSSES[name]


def require_finite_weights(model: nn.Module) -> None:
    """Raise NonFiniteError, naming all parameters and buffers that hold NaN or infinity."""
    bad = [
        name
        for tensors in (model.named_parameters(), model.named_buffers())
        for name, tensor in tensors
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if bad:
        raise NonFiniteError(f"the model's weights hold NaN or infinity: {', '.join(bad)}")


def require_eval_mode(model: nn.Module) -> None:
    """Raise ConfigError where the model computes otherwise in training than in evaluation."""
    found = [
        f"{name or 'the model itself'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if module.training and _depends_on_mode(module)
    ]
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise ConfigError(
            "the model is in training mode, where these modules are random or use the batch: "
            f"{', '.join(found[:5])}{more}. Call model.eval() first"
        )


def _depends_on_mode(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return bool(module.track_running_stats)
    if isinstance(module, nn.modules.batchnorm._NormBase | nn.RReLU):
        return True
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return module.dropout > 0
    return False


def check_batch(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Raise DataError unless `x` and `y` are a batch that the model can take."""
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise DataError(f"x and y must be tensors, got {type(x).__name__} and {type(y).__name__}")
    if not x.is_floating_point():
        raise DataError(
            f"x has dtype {x.dtype}; a perturbation needs floats, e.g. x.float() / 255 for pixels"
        )
    if x.dim() == 0 or len(x) == 0:
        raise DataError("x holds no samples")
    if len(x) != len(y):
        raise DataError(f"{len(x)} samples but {len(y)} labels")
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    if like is not None and like.dtype != x.dtype:
        raise DataError(f"x is {x.dtype} but the model's weights are {like.dtype}: convert one")


def per_sample(value: float | Tensor, x: Tensor, name: str) -> Tensor:
    """A number, `[batch]` or anything that broadcasts to `x`, as a view shaped like `x`."""
    tensor = torch.as_tensor(value, dtype=x.dtype, device=x.device).detach()
    if tensor.shape == x.shape[:1]:
        tensor = tensor.reshape(-1, *[1] * (x.dim() - 1))
    try:
        fits = torch.broadcast_shapes(tensor.shape, x.shape) == x.shape  # type: ignore[no-untyped-call]
    except RuntimeError:
        fits = False
    if not fits:
        raise ConfigError(
            f"{name} of shape {list(tensor.shape)} is neither a number, nor [{len(x)}] (one per "
            f"sample), nor does it broadcast to the input's {list(x.shape)}"
        )
    return tensor.expand(x.shape)


@dataclass
class Search:
    """One attack in progress: the problem, and per sample the worst point met so far.

    Args:
        model: in evaluation mode.
        x, y: the batch.
        eps: radii, shaped like `x`.
        ball: where points may lie.
        best: the point of the smallest margin so far.
        margin: `[batch]`, the margin at `best`.
        classes: number of logits.
        gradient_evaluations, bound_evaluations: running counts, one per sample.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    eps: Tensor
    ball: Interval
    best: Tensor
    margin: Tensor
    classes: int
    gradient_evaluations: int = 0
    bound_evaluations: int = 0
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def begin(
        cls,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        eps: float | Tensor,
        clip: tuple[float, float] | None,
        norm: float = math.inf,
    ) -> Search:
        """Check the problem and run the model on the clean batch.

        Raises:
            ConfigError: a model in training mode, or eps of a shape that does not fit.
            DataError: `x` and `y` are no batch.
            RegionError: eps < 0, or `x` outside `clip`.
            NonFiniteError: NaN or infinity in `x`, eps or the logits.
            SpecError: the output is not `[batch, classes]`, or a label is out of range.
        """
        started = time.perf_counter()
        require_eval_mode(model)
        check_batch(model, x, y)
        # A copy: tensors made under inference_mode could not be differentiated.
        x = x.detach().clone()
        radius = per_sample(eps, x, "eps")
        ball = _ball(x, radius, norm, clip)
        logits = run_model(model, x)
        Margin(logits.shape[1]).check_labels(y, len(x))
        if not bool(torch.isfinite(logits).all()):
            raise NonFiniteError(
                "the model's outputs on the unperturbed batch hold NaN or infinity; "
                "check its weights"
            )
        y = y.detach().long()
        margin = margins(logits, y)
        return cls(model, x, y, radius, ball, x, margin, logits.shape[1], started=started)

    def unbroken(self) -> Tensor:
        """Indices of the samples that still stand."""
        return (self.margin > 0).nonzero().squeeze(1)

    def project(self, points: Tensor, index: Tensor) -> Tensor:
        part = samples_of(self.ball, index)
        if isinstance(part, BallInterval):
            return inside_ball(points, part)
        return points.clamp(part.lower, part.upper)

    def direction(self, gradient: Tensor) -> Tensor:
        """The steepest direction of unit size in the ball's norm."""
        if isinstance(self.ball, BallInterval):
            return steepest(gradient, self.ball.norm)
        return sign(gradient)

    def observe(self, points: Tensor, index: Tensor, margin: Tensor) -> None:
        """Keep the points that are worse for the model than the ones known."""
        known = self.margin[index]
        # A NaN logit is no correct answer: it counts as worse than any margin.
        worse = (margin < known) | (torch.isnan(margin) & ~torch.isnan(known))
        at = index[worse]
        if len(at):
            self.best = self.best.index_copy(0, at, points[worse])
            self.margin = self.margin.index_copy(0, at, margin[worse])

    def evaluate(self, points: Tensor, index: Tensor) -> Tensor:
        """Run the model, observe, and return the margins `[len(index)]`."""
        margin = margins(run_model(self.model, points), self.y[index])
        self.observe(points, index, margin)
        return margin

    def gradient(self, points: Tensor, index: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """The gradient of the loss at the points, and the margins there (observed)."""
        with torch.enable_grad():
            leaf = points.detach().requires_grad_()
            logits = self.model(leaf)
            # autograd.grad with respect to the input alone: parameters' .grad stay as they are.
            (gradient,) = torch.autograd.grad(loss(logits, self.y[index]), leaf)
        self.gradient_evaluations += len(points)
        margin = margins(logits.detach(), self.y[index])
        self.observe(leaf.detach(), index, margin)
        return gradient, margin

    def finish(self) -> AttackResult:
        """Check every point once more and hand over the result."""
        lower, upper = self.ball.lower, self.ball.upper
        inside = bool(((self.best >= lower) & (self.best <= upper)).all())
        if isinstance(self.ball, BallInterval):
            size = ball_size(self.best.double() - self.x.double(), self.ball.norm)
            inside = inside and bool((size <= self.ball.reach.double()).all())
        if not inside:
            raise InternalError("an attack left the ball; this is a bug in BoundGraph")
        margin = margins(run_model(self.model, self.best), self.y)
        return AttackResult(
            x_adv=self.best,
            broken=~(margin > 0),
            margin=margin,
            gradient_evaluations=self.gradient_evaluations,
            bound_evaluations=self.bound_evaluations,
            seconds=time.perf_counter() - self.started,
        )


def run_model(model: nn.Module, x: Tensor) -> Tensor:
    """The logits `[batch, classes]`, without a graph.

    Raises:
        SpecError: the model returns anything else.
    """
    with torch.no_grad():
        logits = model(x)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise SpecError(f"the model must return logits [{len(x)}, classes], it returned {shape}")
    return logits


def sign(direction: Tensor) -> Tensor:
    """-1, 0 or 1; a NaN points nowhere, as a step along it would leave the ball."""
    return (direction > 0).to(direction.dtype) - (direction < 0).to(direction.dtype)


def random_points(search: Search, generator: torch.Generator) -> Tensor:
    """Uniform in the ball, one point for every sample, whether it is still needed or not.

    Drawing for all keeps a sample's starting points independent of the others' fates.
    """
    x = search.x
    noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=generator.device)
    noise = noise.to(x.device)
    lower, upper = search.ball.lower, search.ball.upper
    points = (lower + noise * (upper - lower)).clamp(lower, upper)
    return inside_ball(points, search.ball) if isinstance(search.ball, BallInterval) else points


def _ball(x: Tensor, radius: Tensor, norm: float, clip: tuple[float, float] | None) -> Interval:
    """Where points may lie; a p-ball needs one radius for each sample."""
    if norm == math.inf:
        return LinfBall(x, radius, clip).interval()
    flat = radius.flatten(1) if radius.dim() > 1 else radius.unsqueeze(1)
    if bool((flat != flat[:, :1]).any()):
        raise ConfigError(f"the {norm:g}-norm needs one eps for each sample, not one per element")
    return LpBall(x, flat[:, 0], norm, clip).interval()


def make_generator(generator: torch.Generator | None, seed: int) -> torch.Generator:
    return generator if generator is not None else torch.Generator().manual_seed(seed)
