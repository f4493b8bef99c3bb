"""Bound programs of a training loss, kept as long as what they depend on stays the same."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm

from boundgraph.compiler import compile
from boundgraph.domains.regions import ball
from boundgraph.domains.specs import CrossEntropy, Margin, OtherMargins
from boundgraph.errors import ConfigError, SpecError
from boundgraph.fingerprint import changed, fingerprint
from boundgraph.ops._whole import copy_over, tensor_at, tensor_names
from boundgraph.runtime.module import BoundProgram
from boundgraph.training._clean import normalizations, replaceable
from boundgraph.training._dropout import Mask, Masked, draw_masks, drops

_Made = tuple[BoundProgram, tuple[_BatchNorm, ...] | None, tuple[Mask, ...]]
# Programs of one loss; more mean that something changes all the time.
_MOST = 16


def inner_module(model: nn.Module) -> nn.Module:
    """The user's module inside wrappers (DDP, DataParallel, `torch.compile`), or the model."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def count_classes(model: nn.Module, x: Tensor) -> int:
    """Width of `model(x)` from a run on fake tensors: no arithmetic, no state changed.

    Raises:
        SpecError: the output is not a `[batch, classes]` tensor.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        fakes: dict[str, Tensor] = {
            name: mode.from_tensor(tensor.detach()) for name, tensor in tensors.items()
        }
        output = torch.func.functional_call(
            _without_counting(model), fakes, (mode.from_tensor(x.detach()),)
        )
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[0] != x.shape[0]:
        what = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise SpecError(
            f"a classification loss needs logits [batch, classes]; the model returns {what}"
        )
    return int(output.shape[1])


def _without_counting(model: nn.Module) -> nn.Module:
    """The model, or a shallow copy where momentum=None reads the value of a counter."""
    modules = model.named_modules(remove_duplicate=False)
    paths = [path for path, m in modules if isinstance(m, _BatchNorm) and m.momentum is None]
    if not paths:
        return model
    names = tensor_names(model)
    shallow = copy_over(model, {name: tensor_at(model, name) for name in names}, "")
    for path in paths:
        shallow.get_submodule(path).__dict__["momentum"] = 0.0
    return shallow


class ProgramCache:
    """Programs by everything a program depends on.

    Attributes:
        active: the program last selected.
        classes: number of classes of the model it belongs to.
        normalizations: the modules whose statistics it returns beside the clean logits; None
            where it returns bounds only.
        masks: what its inputs behind the first are.
    """

    def __init__(self) -> None:
        self.active: BoundProgram | None = None
        self.classes = 0
        self.normalizations: tuple[_BatchNorm, ...] | None = None
        self.masks: tuple[Mask, ...] = ()
        self._programs: dict[Hashable, tuple[int, _Made]] = {}
        # Keeps every part of a key alive, so that no id in a key is ever reused.
        self._alive: list[object] = []
        self._key: Hashable = None
        self._state: tuple[Any, ...] = ()

    def select(
        self,
        model: nn.Module,
        x: Tensor,
        method: str,
        *,
        norm: float = math.inf,
        fused: bool = False,
        tracks: bool = False,
        tune_for: str | None = None,
    ) -> None:
        """Make the program for batches like `x` the active one, compiling it if needed."""
        # Modules and parameters are part of the key by identity, so that replacing a layer
        # or switching BatchNorm to evaluation cannot leave a stale program in use.
        state = fingerprint(model)
        key = (
            (method, norm, fused, tracks),
            tuple(x.shape[1:]),
            x.dtype,
            x.device,
            tune_for,
            # Under every name: (a, a, b) and (a, b, b) are different models.
            tuple(id(m) for _, m in model.named_modules(remove_duplicate=False)),
            tuple(id(p) for _, p in model.named_parameters(remove_duplicate=False)),
            # Numbers and flags were settled when the model was captured.
            state,
        )
        if key == self._key:
            return
        if key not in self._programs:
            self._settle(state)
            example = torch.zeros((2, *x.shape[1:]), dtype=x.dtype, device=x.device)
            classes = count_classes(model, example)
            made = _compiled(model, example, method, norm, classes, tune_for, fused, tracks)
            self._programs[key] = (classes, made)
            self._alive.append((*model.modules(), *model.parameters()))
        self._key, self._state = key, state
        self.classes, (self.active, self.normalizations, self.masks) = self._programs[key]

    def _settle(self, state: tuple[Any, ...]) -> None:
        """Forget old programs where a model changes on and on, and say what changes."""
        if len(self._programs) < _MOST:
            return
        names = ", ".join(changed(self._state, state)) or "its shapes or layers"
        warnings.warn(
            f"the bound program was compiled {_MOST} times, because the model keeps changing "
            f"({names}); a number that changes from call to call belongs in a buffer",
            UserWarning,
            stacklevel=5,
        )
        self._programs.clear()
        self._alive.clear()


def _compiled(
    model: nn.Module,
    example: Tensor,
    method: str,
    norm: float,
    classes: int,
    tune_for: str | None,
    fused: bool,
    tracks: bool,
) -> _Made:
    """A program for training, with clean outputs where they can replace a pass of the model."""
    # Each margin is a row that a backward method carries; intervals have all of them at once.
    rows = OtherMargins if method in ("crown-ibp", "crown") else Margin

    source: nn.Module = model
    masks: tuple[Mask, ...] = ()
    if drops(model):
        masked = Masked(model)
        source, masks = masked, masked.calls(example)
        if fused or tracks or not replaceable(model):
            raise ConfigError(
                "dropout in training mode shares its masks between the clean pass and the bounds, "
                "which cannot be combined with fused=True, beta=, hooks, parametrizations or "
                "buffers of the model's own; put the dropout layers into evaluation mode"
            )

    def make(keep_clean: bool) -> BoundProgram:
        return compile(
            source,
            ball(example, 0.0, norm),
            *draw_masks(masks, example),
            masked=bool(masks),
            method=method,
            spec=(CrossEntropy if fused else rows)(classes),
            training=True,
            lower_only=True,
            tracks=fused or tracks,
            keep_clean=keep_clean,
            tune_for=tune_for,
        )

    if masks:
        program = make(keep_clean=True)
        normalizes = any(node.op == "batch_mean" for node in program.ir.nodes)
        found = normalizations(program.ir, source) if normalizes else ()
        if found is None:
            raise ConfigError("a normalisation beside dropout is not a module of the model")
        return program, found, masks
    if fused or tracks:
        # Its two outputs are the bounds; the clean logits take a pass of their own.
        return make(keep_clean=False), None, ()
    program = make(keep_clean=replaceable(model))
    if not program.needs_clean or len(program.ir.outputs) == 1:
        return program, None, ()
    found = normalizations(program.ir, model)
    return (program, found, ()) if found is not None else (make(keep_clean=False), None, ())
