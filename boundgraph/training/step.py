"""`compile_step`: clean loss, bound loss, backward, clipping and update as one region."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from boundgraph.errors import ConfigError, NonFiniteError
from boundgraph.training._cuda_options import cuda_options
from boundgraph.training._programs import inner_module
from boundgraph.training._updates import Update, make_update, refusal
from boundgraph.training.losses import LossParts, TrainingLoss

Mode = Literal["whole", "loss", "eager"]
_ASKED = "no backend asked for"
_NO_GRAD_TRACING = (
    f"torch {torch.__version__} cannot trace autograd.grad inside torch.compile "
    "(torch._dynamo.config.trace_autograd_ops is newer)"
)
_WATCHED = ("clean loss", "bound loss", "gradient")


class StepWarning(UserWarning):
    """A step runs less compiled than asked for; the message has the reason."""


class Step:
    """One training step, called as `metrics = step(x, y)`.

    Three modes, the first that works is used and `mode` says which:

    - `"whole"`: both losses, backward, clipping and the optimizer's update are one graph.
    - `"loss"`: the losses are compiled, backward and the stock optimizer run as usual.
    - `"eager"`: nothing is compiled.

    The graph is compiled at the first call, for that batch's shape. A batch of another
    shape (the last of an epoch) runs eagerly on the same parameters and optimizer state.

    Attributes:
        mode: see above.
        reason: why it is not `"whole"`, None where it is.
        cuda_graphs: whether the compiled step is replayed as one CUDA graph.
        cuda_graphs_reason: why it is not, although asked for; None otherwise.
        compile_seconds: time of the first call, compilation included.
        odd_batches: how many batches ran eagerly because of their shape.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        loss_fn: TrainingLoss,
        *,
        clip_norm: float | None,
        backend: str | Callable[..., Any] | None,
        options: Mapping[str, Any] | None,
        checks: bool | None,
        cuda_graphs: bool = False,
    ) -> None:
        self.optimizer, self.loss_fn, self.clip_norm = optimizer, loss_fn, clip_norm
        self.backend, self.options = backend, dict(options or {})
        self.checks = checks
        self.cuda_graphs = cuda_graphs
        self.cuda_graphs_reason: str | None = None
        self._wanted_cuda_graphs = cuda_graphs
        self.mode: Mode = "whole"
        self.reason: str | None = None
        self.compile_seconds: float | None = None
        self.odd_batches = 0
        self._update: Update | None = None
        self._compiled: Callable[..., Any] | None = None
        self._signature: Any = None
        # What was not finite since the last look, in the order of _WATCHED.
        self._bad = torch.zeros(3, dtype=torch.bool, device=loss_fn.eps.device)
        self.device = loss_fn.eps.device
        if cuda_graphs and self.device.type != "cuda":
            self._without_cuda_graphs(f"the parameters are on {self.device}, not on a CUDA device")
        if backend is None:
            self.mode, self.reason = "eager", _ASKED
        else:
            self._choose()
        if self.cuda_graphs and self.mode != "whole":
            self._without_cuda_graphs(f"{self.reason}")

    def __call__(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Train on one batch.

        Args:
            x: inputs `[batch, ...]` on the parameters' device.
            y: labels `[batch]`, int64.

        Returns:
            0-d tensors, nothing synchronised: `loss`, `clean_loss`, `bound_loss`,
            `clean_accuracy`, `certified_accuracy` (of the bounded samples) and `grad_norm`
            (before clipping).

        Raises:
            DataError, SpecError: the batch does not fit the model.
            NonFiniteError: the loss or gradient is NaN or infinite. At once on a CPU; on
                other devices at `raise_if_nonfinite()`. Weights and optimizer state stay as
                they were, except in the `"loss"` and `"eager"` modes off the CPU.
        """
        if self.checks or (self.checks is None and (x.device.type == "cpu" or not self._signature)):
            self.loss_fn.check_batch(x, y)
        else:
            self.loss_fn.prepare(x, y)
        index = self.loss_fn.draw(x.shape[0])
        x = self.loss_fn.perturb(x, y)
        signature = (x.shape, x.dtype, x.device)
        if self._signature is None:
            self._signature = signature
            started = time.perf_counter()
            metrics = self._first(x, y, index)
            self.compile_seconds = time.perf_counter() - started
        elif signature != self._signature:
            self.odd_batches += 1
            metrics = self._eager(x, y, index)
        else:
            metrics = self._run(x, y, index)
        if x.device.type == "cpu":
            self.raise_if_nonfinite()
        return metrics

    def region(self) -> Callable[..., dict[str, Tensor]] | None:
        """The traced function `(x, y, index)` of the `"whole"` mode, ready to be called."""
        if self.mode != "whole" or self._update is None:
            return None
        self._ready()
        return self._region

    def raise_if_nonfinite(self) -> None:
        """Raise NonFiniteError if a loss or gradient was NaN or infinite since the last call.

        Synchronises with the device: call it once per epoch.
        """
        bad = self._bad.tolist()
        if not any(bad):
            return
        self._bad.zero_()
        names = [name for name, flag in zip(_WATCHED, bad, strict=True) if flag]
        message = (
            f"the {' and the '.join(names)} became NaN or infinite; lower the learning rate, "
            "ramp eps more slowly or clip gradients"
        )
        for name, tensor in self.loss_fn.model.named_parameters():
            if not bool(torch.isfinite(tensor).all()):
                message += f". The weight {name!r} is not finite: go back to a checkpoint"
                break
        raise NonFiniteError(message)

    def _choose(self) -> None:
        """Settle on the most that the optimizer, the model and this torch allow."""
        wrapped = inner_module(self.loss_fn.model) is not self.loss_fn.model
        reason = refusal(self.optimizer)
        if reason is None and wrapped:
            wrapper = type(self.loss_fn.model).__name__
            reason = f"the model is wrapped in {wrapper}, which needs an ordinary backward"
        if reason is None and not hasattr(torch._dynamo.config, "trace_autograd_ops"):
            reason = _NO_GRAD_TRACING
        if reason is None:
            self._update = make_update(self.optimizer)
            self._compiled = self._torch_compile(self._region, fullgraph=True)
        else:
            self._fall_back("loss", reason)

    def _ready(self) -> None:
        """Bind the optimizer's state and write the numbers of the coming step."""
        assert self._update is not None
        if self._update.bind() and self._wanted_cuda_graphs:
            # A CUDA graph may only write tensors whose address it knows to stay.
            for tensor in (self._bad, *self._update.tensors(), *self.loss_fn.buffers()):
                torch._dynamo.mark_static_address(tensor, guard=False)
        self._update.fill()

    def _without_cuda_graphs(self, reason: str) -> None:
        self.cuda_graphs, self.cuda_graphs_reason = False, reason
        warnings.warn(f"no CUDA graphs: {reason}", StepWarning, stacklevel=4)

    def _compile_options(self) -> dict[str, Any]:
        """Keyword arguments of torch.compile, for this step only."""
        if self.backend != "inductor" or self.device.type != "cuda" or "mode" in self.options:
            return self.options
        chosen = cuda_options(self.loss_fn)
        if self.cuda_graphs:
            chosen["triton.cudagraphs"] = True
        return self.options | {"options": chosen | dict(self.options.get("options", {}))}

    def _torch_compile(self, fn: Callable[..., Any], fullgraph: bool) -> Callable[..., Any]:
        compiled: Callable[..., Any] = torch.compile(
            fn,
            backend=self.backend or "eager",
            fullgraph=fullgraph,
            dynamic=False,
            **self._compile_options(),
        )
        return compiled

    def _fall_back(self, mode: Mode, reason: str) -> None:
        self.mode, self.reason, self._update = mode, reason, None
        if self.cuda_graphs:
            self._without_cuda_graphs(f"the step is not one graph: {reason}")
        what = {"loss": "only the loss is compiled", "eager": "the step runs eagerly"}[mode]
        warnings.warn(f"{what}: {reason}", StepWarning, stacklevel=5)
        self._compiled = (
            self._torch_compile(self.loss_fn.compute, fullgraph=False) if mode == "loss" else None
        )

    def _first(self, x: Tensor, y: Tensor, index: Tensor | None) -> dict[str, Tensor]:
        """Run the first batch, stepping down a mode where compilation fails.

        Compilation precedes execution, so a failed attempt has changed nothing.
        """
        while self.mode != "eager":
            try:
                return self._run(x, y, index)
            except _compile_errors() as error:
                lines = (str(error).strip() or "no message").splitlines()
                reason = f"torch.compile failed with {type(error).__name__}: {' '.join(lines[:2])}"
                self._fall_back("loss" if self.mode == "whole" else "eager", reason)
        return self._eager(x, y, index)

    def _run(self, x: Tensor, y: Tensor, index: Tensor | None) -> dict[str, Tensor]:
        if self.mode == "eager":
            return self._eager(x, y, index)
        if self.mode == "loss" or self._update is None:
            assert self._compiled is not None
            return self._finish(self._compiled(x, y, index))
        self._ready()
        assert self._compiled is not None
        if self.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            metrics: dict[str, Tensor] = self._compiled(x, y, index)
        if self.cuda_graphs:
            # The next replay writes over the graph's own outputs.
            metrics = {name: value.clone() for name, value in metrics.items()}
        self._update.advance()
        # Learning-rate schedulers ask this flag whether the optimizer has stepped.
        self.optimizer._opt_called = True  # type: ignore[attr-defined]
        return metrics

    def _region(self, x: Tensor, y: Tensor, index: Tensor | None) -> dict[str, Tensor]:
        """The traced step: losses, gradients, clipping, update."""
        assert self._update is not None
        parts = self.loss_fn.compute(x, y, index)
        grads = torch.autograd.grad(parts.loss, self._update.parameters())
        with torch.no_grad():
            norm = torch.stack([torch.linalg.vector_norm(grad) for grad in grads]).norm()
            if self.clip_norm is not None:
                # The formula of torch.nn.utils.clip_grad_norm_.
                scale = (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
                grads = tuple(grad * scale for grad in grads)
            bad = _not_finite(parts, norm)
            self._bad.logical_or_(bad)
            self._update.apply(grads, ~bad.any())
        return _metrics(parts, norm)

    def _eager(self, x: Tensor, y: Tensor, index: Tensor | None) -> dict[str, Tensor]:
        return self._finish(self.loss_fn.compute(x, y, index))

    def _finish(self, parts: LossParts) -> dict[str, Tensor]:
        """Backward, clipping and the stock optimizer."""
        self.optimizer.zero_grad(set_to_none=True)
        parts.loss.backward()  # type: ignore[no-untyped-call]
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.clip_norm is None:
            norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        else:
            norm = torch.nn.utils.clip_grad_norm_(trained, self.clip_norm)
        self._bad.logical_or_(_not_finite(parts, norm))
        if norm.device.type == "cpu":
            # Before the update, so that the weights stay what they were.
            self.raise_if_nonfinite()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return _metrics(parts, norm)


def _not_finite(parts: LossParts, norm: Tensor) -> Tensor:
    return ~torch.isfinite(torch.stack([parts.clean_loss, parts.bound_loss, norm]))


def _metrics(parts: LossParts, norm: Tensor) -> dict[str, Tensor]:
    return {
        "loss": parts.loss.detach(),
        "clean_loss": parts.clean_loss,
        "bound_loss": parts.bound_loss,
        "clean_accuracy": parts.clean_accuracy,
        "certified_accuracy": parts.certified_accuracy,
        "grad_norm": norm,
    }


def _compile_errors() -> tuple[type[Exception], ...]:
    """What torch.compile raises when it, not the user's code, fails."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    return (TorchDynamoException, CppCompileError, InvalidCxxCompiler)


def compile_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: TrainingLoss,
    *,
    clip_norm: float | None = None,
    backend: str | Callable[..., Any] | None = "inductor",
    options: Mapping[str, Any] | None = None,
    checks: bool | None = None,
    cuda_graphs: bool = False,
) -> Step:
    """Make a training step in which everything is compiled together where possible.

    With SGD (no dampening), Adam or AdamW the whole step is one `torch.compile` region.
    With another optimizer, a DDP-wrapped model, or a torch that cannot trace gradients,
    only the loss is compiled; where `torch.compile` fails the step runs eagerly. Both are
    said: in a `StepWarning`, `step.mode` and `step.reason`. Changing ε, α or a learning
    rate never compiles again.

    Args:
        model: the model that `loss_fn` was made for.
        optimizer: over its parameters. State stays in it; schedulers and `state_dict()`
            work as usual.
        loss_fn: `MixedLoss` or another `TrainingLoss`.
        clip_norm: largest gradient norm (L2, over all parameters); None for no limit.
        backend: of torch.compile; None runs eagerly and says nothing.
        options: further keyword arguments of torch.compile, e.g. `{"mode": "max-autotune"}`.
        checks: look at every batch for bad labels and NaN (one pass over it, and a
            synchronisation on an accelerator). None: on a CPU each batch, elsewhere the
            first.
        cuda_graphs: replay the whole step as one CUDA graph. Where that cannot be (no CUDA
            device, a step that is not one graph) it runs without, and says so in a
            `StepWarning` and `step.cuda_graphs_reason`. Choose the mode of torch.compile or
            this, not both.

    Raises:
        ConfigError: an option has a value it cannot have.

    Example:
        >>> from boundgraph.training.losses import MixedLoss
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        >>> loss_fn = MixedLoss(model, eps=0.05, subset=2)
        >>> step = compile_step(model, optimizer, loss_fn, backend=None)
        >>> metrics = step(torch.rand(6, 4), torch.randint(0, 3, (6,)))
        >>> sorted(metrics)[:2]
        ['bound_loss', 'certified_accuracy']
    """
    if not isinstance(loss_fn, TrainingLoss):
        raise ConfigError(
            f"loss_fn must be a MixedLoss or another TrainingLoss, got {type(loss_fn).__name__}"
        )
    if inner_module(loss_fn.model) is not inner_module(model):
        raise ConfigError("loss_fn was made for another model than the one given")
    if clip_norm is not None and not (clip_norm > 0 and clip_norm < float("inf")):
        raise ConfigError(f"clip_norm must be a positive number or None, got {clip_norm!r}")
    if not any(group["params"] for group in optimizer.param_groups):
        raise ConfigError("the optimizer has no parameters")
    if cuda_graphs and "mode" in (options or {}):
        raise ConfigError("choose cuda_graphs=True or the mode of torch.compile, not both")
    return Step(
        optimizer,
        loss_fn,
        clip_norm=clip_norm,
        backend=backend,
        options=options,
        checks=checks,
        cuda_graphs=cuda_graphs,
    )
