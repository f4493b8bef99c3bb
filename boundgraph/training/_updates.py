"""The update formulas of stock optimizers as traceable tensor code.

A stock `optimizer.step()` reads Python numbers and breaks a traced graph. An `Update`
computes the same formulas from 0-d tensors and writes parameters and state in place. The
state stays in the optimizer's own `state`, in the stock layout, so `state_dict()`,
learning-rate schedulers and a later stock `step()` work as if nothing had happened.
Numbers are computed in double precision on the host and rounded once, as torch does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Group:
    """One parameter group as the traced code sees it.

    Attributes:
        params: parameters that require a gradient.
        slots: state tensors by name, one per parameter.
        numbers: 0-d tensors by name, filled before each step.
        flags: options that decide which formula is traced.
    """

    def __init__(self, params: list[Tensor], flags: dict[str, bool], names: Sequence[str]) -> None:
        self.params = params
        self.flags = flags
        self.slots: dict[str, list[Tensor]] = {}
        first = params[0] if params else torch.zeros(())
        dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
        self.numbers = {name: torch.zeros((), dtype=dtype, device=first.device) for name in names}
        self._filled: dict[str, float] = {}

    def fill(self, **values: float) -> None:
        """Set numbers in place; an unchanged one costs nothing."""
        for name, value in values.items():
            if self._filled.get(name) != value:
                self.numbers[name].fill_(value)
                self._filled[name] = value


class Update(ABC):
    """The update of one optimizer; `bind` first, then per step `fill`, `apply`, `advance`."""

    numbers: tuple[str, ...]
    slots: tuple[str, ...]

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.groups: list[Group] = []
        self._bound: Any = None

    @abstractmethod
    def flags(self, group: dict[str, Any]) -> dict[str, bool]:
        """The options of a group that choose the formula."""

    @abstractmethod
    def fill(self) -> None:
        """Write the numbers of the coming step. Changes nothing else."""

    @abstractmethod
    def apply(self, grads: Sequence[Tensor], sane: Tensor) -> None:
        """Update parameters and state in place; traceable, under `no_grad`.

        Args:
            grads: one per entry of `parameters()`.
            sane: 0-d bool; where False, everything keeps its value.
        """

    def advance(self) -> None:  # noqa: B027  (most optimizers count nothing)
        """Count the step that was applied, as the stock optimizer would."""

    def bind(self) -> bool:
        """Find the optimizer's parameters and state, creating state where absent.

        Returns:
            False where nothing changed since the last call.
        """
        groups = self.optimizer.param_groups
        parts = [[p for p in group["params"] if p.requires_grad] for group in groups]
        flags = [self.flags(group) for group in groups]
        state = self.optimizer.state
        self._create(parts, flags)
        found = [id(part) for params in parts for p in params for part in state.get(p, {}).values()]
        identity = [[id(p) for p in params] for params in parts]
        if self._bound == (flags, identity, found):
            return False
        self.groups = [
            Group(params, flag, self.numbers) for params, flag in zip(parts, flags, strict=True)
        ]
        for group in self.groups:
            for slot in self.slots:
                if self._uses(slot, group.flags):
                    group.slots[slot] = [state[p][slot] for p in group.params]
        self._bound = (flags, identity, found)
        return True

    def parameters(self) -> list[Tensor]:
        """All parameters in the order in which `apply` expects gradients."""
        return [p for group in self.groups for p in group.params]

    def tensors(self) -> list[Tensor]:
        """What `apply` reads and writes beside the gradients; all on the parameters' device."""
        found = self.parameters()
        for group in self.groups:
            found += group.numbers.values()
            # The count of steps stays on the host, as the stock optimizer's does.
            found += [p for name, slot in group.slots.items() if name != "step" for p in slot]
        return found

    def _uses(self, slot: str, flags: dict[str, bool]) -> bool:
        return True

    def _create(self, parts: list[list[Tensor]], flags: list[dict[str, bool]]) -> None:
        for params, flag in zip(parts, flags, strict=True):
            for parameter in params:
                for slot in (name for name in self.slots if self._uses(name, flag)):
                    state = self.optimizer.state[parameter]
                    if state.get(slot) is None:
                        state[slot] = self._initial(slot, parameter)

    def _initial(self, slot: str, parameter: Tensor) -> Tensor:
        return torch.zeros_like(parameter, memory_format=torch.preserve_format)


class SGDUpdate(Update):
    """`torch.optim.SGD` without dampening."""

    numbers = ("lr", "momentum", "weight_decay")
    slots = ("momentum_buffer",)

    def flags(self, group: dict[str, Any]) -> dict[str, bool]:
        return {
            "momentum": group["momentum"] != 0,
            "nesterov": bool(group["nesterov"]),
            "weight_decay": group["weight_decay"] != 0,
            "maximize": bool(group["maximize"]),
        }

    def _uses(self, slot: str, flags: dict[str, bool]) -> bool:
        return flags["momentum"]

    def fill(self) -> None:
        for group, options in zip(self.groups, self.optimizer.param_groups, strict=True):
            group.fill(
                lr=float(options["lr"]),
                momentum=float(options["momentum"]),
                weight_decay=float(options["weight_decay"]),
            )

    def apply(self, grads: Sequence[Tensor], sane: Tensor) -> None:
        position = 0
        for group in self.groups:
            numbers, flags = group.numbers, group.flags
            for i, param in enumerate(group.params):
                grad = grads[position]
                position += 1
                if flags["maximize"]:
                    grad = -grad
                if flags["weight_decay"]:
                    grad = grad + param * numbers["weight_decay"]
                if flags["momentum"]:
                    # A buffer of zeros gives the stock first step, buffer = gradient.
                    buffer = group.slots["momentum_buffer"][i]
                    moved = buffer * numbers["momentum"] + grad
                    grad = grad + moved * numbers["momentum"] if flags["nesterov"] else moved
                    _assign(buffer, moved, sane)
                _assign(param, param - grad * numbers["lr"], sane)


class AdamUpdate(Update):
    """`torch.optim.Adam` and `AdamW`, with or without AMSGrad."""

    numbers = ("step_size", "correction", "gain1", "beta2", "gain2", "eps", "decay")
    slots = ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")

    def flags(self, group: dict[str, Any]) -> dict[str, bool]:
        adamw = isinstance(self.optimizer, torch.optim.AdamW)
        return {
            "amsgrad": bool(group["amsgrad"]),
            "decoupled": bool(group.get("decoupled_weight_decay", adamw)),
            "weight_decay": group["weight_decay"] != 0,
            "maximize": bool(group["maximize"]),
        }

    def _uses(self, slot: str, flags: dict[str, bool]) -> bool:
        return slot != "max_exp_avg_sq" or flags["amsgrad"]

    def _initial(self, slot: str, parameter: Tensor) -> Tensor:
        if slot == "step":
            return torch.tensor(0.0, dtype=torch.float32)
        return super()._initial(slot, parameter)

    def fill(self) -> None:
        for group, options in zip(self.groups, self.optimizer.param_groups, strict=True):
            if not group.params:
                continue
            step = float(group.slots["step"][0]) + 1.0
            beta1, beta2 = (float(beta) for beta in options["betas"])
            lr, decay = float(options["lr"]), float(options["weight_decay"])
            group.fill(
                step_size=lr / (1.0 - beta1**step),
                correction=(1.0 - beta2**step) ** 0.5,
                gain1=1.0 - beta1,
                beta2=beta2,
                gain2=1.0 - beta2,
                eps=float(options["eps"]),
                decay=1.0 - lr * decay if group.flags["decoupled"] else decay,
            )

    def advance(self) -> None:
        for group in self.groups:
            if group.params:
                torch._foreach_add_(group.slots["step"], 1.0)

    def apply(self, grads: Sequence[Tensor], sane: Tensor) -> None:
        position = 0
        for group in self.groups:
            for i, param in enumerate(group.params):
                self._apply_one(group, i, param, grads[position], sane)
                position += 1

    @staticmethod
    def _apply_one(group: Group, i: int, param: Tensor, grad: Tensor, sane: Tensor) -> None:
        numbers, flags = group.numbers, group.flags
        start: Tensor = param
        if flags["maximize"]:
            grad = -grad
        if flags["weight_decay"] and flags["decoupled"]:
            start = param * numbers["decay"]
        elif flags["weight_decay"]:
            grad = grad + param * numbers["decay"]
        mean, square = group.slots["exp_avg"][i], group.slots["exp_avg_sq"][i]
        new_mean = mean + (grad - mean) * numbers["gain1"]
        new_square = square * numbers["beta2"] + grad * grad * numbers["gain2"]
        largest = new_square
        if flags["amsgrad"]:
            slot = group.slots["max_exp_avg_sq"][i]
            largest = torch.maximum(slot, new_square)
            _assign(slot, largest, sane)
        scale = largest.sqrt() / numbers["correction"] + numbers["eps"]
        _assign(param, start - new_mean / scale * numbers["step_size"], sane)
        _assign(mean, new_mean, sane)
        _assign(square, new_square, sane)


def _assign(target: Tensor, value: Tensor, sane: Tensor) -> None:
    target.copy_(torch.where(sane, value, target))


UPDATES: dict[type[torch.optim.Optimizer], type[Update]] = {
    torch.optim.SGD: SGDUpdate,
    torch.optim.Adam: AdamUpdate,
    torch.optim.AdamW: AdamUpdate,
}


def refusal(optimizer: torch.optim.Optimizer) -> str | None:
    """Why this optimizer cannot be part of a single traced step; None where it can."""
    name = type(optimizer).__name__
    if type(optimizer) not in UPDATES:
        known = ", ".join(cls.__name__ for cls in UPDATES)
        return f"the optimizer {name} has no traceable form here (there is one for {known})"
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return "the optimizer has step hooks, which a traced update would skip"
    for group in optimizer.param_groups:
        if group.get("differentiable"):
            return f"{name} was made with differentiable=True"
        if group.get("momentum") and group.get("dampening"):
            return f"{name} uses dampening, whose first step differs from the others"
        if isinstance(group["lr"], Tensor) and group["lr"].device.type != "cpu":
            return "the learning rate is a tensor on the device; reading it would synchronise"
        if any(p.is_complex() or p.is_sparse for p in group["params"]):
            return "a parameter is complex or sparse"
        steps = {
            float(optimizer.state[p]["step"])
            for p in group["params"]
            if "step" in optimizer.state.get(p, {})
        }
        if len(steps) > 1:
            return f"parameters of one group of {name} have taken different numbers of steps"
    return None


def make_update(optimizer: torch.optim.Optimizer) -> Update:
    """The traceable form of an optimizer that `refusal` accepts."""
    return UPDATES[type(optimizer)](optimizer)
