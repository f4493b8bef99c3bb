"""Recipes: everything about a training run that is not the model or the data.

Presets were tuned on training data with held-out images; `docs/benchmarks.md` has what
they reach. A recipe is a frozen dataclass: `dataclasses.replace` makes a variant.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from boundgraph.compiler import TRAINING_METHODS
from boundgraph.errors import ConfigError
from boundgraph.training.adversarial import AdversarialLoss
from boundgraph.training.controllers import Controller, make_controller
from boundgraph.training.initialization import initialize_for_ibp
from boundgraph.training.losses import MixedLoss, TrainingLoss
from boundgraph.training.schedules import Constant, Cosine, Linear, Schedule, schedule_from_dict

OPTIMIZERS = ("adam", "adamw", "sgd")
LOSSES = ("mixed", "pgd", "clean")
INITIALIZATIONS = ("default", "ibp")


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of a run.

    Args:
        name: what it is called in run folders.
        loss: `"mixed"` (clean and bound), `"pgd"` (adversarial) or `"clean"`.
        method: bound method of the mixed loss.
        epochs: passes over the training data.
        batch_size: samples per step.
        subset: samples bounded per step, None for all.
        optimizer: `"adam"`, `"adamw"` or `"sgd"` (Nesterov momentum 0.9).
        lr: learning rate over the run.
        weight_decay: of the optimizer.
        eps: ε over the run as a fraction of the target, usually 0 to 1.
        train_eps: factor on ε in the bound loss.
        alpha: weight of the bound loss at the start.
        controller, controller_options: who moves α; see `controllers`.
        clip_norm: largest gradient norm, None for no limit.
        ema: decay of the weight average that is evaluated in the end, None for none.
        ema_start: fraction of the run before which the average just follows the weights.
        init: `"default"` leaves the model's weights, `"ibp"` draws them with
            `initialize_for_ibp`.
        hidden_bias: initial bias of hidden linear layers where `init` is `"ibp"`.
        fused: bound the cross-entropy itself instead of the margins (`"crown-ibp"`).
        beta: weight of the backward bounds over the run, the rest being interval bounds;
            None for backward bounds alone, or another method.
        attack_steps: PGD steps of the `"pgd"` loss.
    """

    name: str = "mixtrain"
    loss: str = "mixed"
    method: str = "ibp"
    epochs: int = 60
    batch_size: int = 64
    subset: int | None = 16
    optimizer: str = "adam"
    lr: Schedule = field(default_factory=lambda: Cosine(5e-3))
    weight_decay: float = 0.0
    eps: Schedule = field(default_factory=lambda: Linear(0.0, 1.0, end=0.4))
    train_eps: float = 1.2
    alpha: float = 0.85
    controller: str = "constant"
    controller_options: Mapping[str, Any] = field(default_factory=dict)
    clip_norm: float | None = 10.0
    ema: float | None = None
    ema_start: float = 0.5
    init: str = "ibp"
    hidden_bias: float = 0.0
    fused: bool = False
    beta: Schedule | None = None
    attack_steps: int = 7

    def __post_init__(self) -> None:
        _one_of("loss", self.loss, LOSSES)
        _one_of("method", self.method, TRAINING_METHODS)
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("init", self.init, INITIALIZATIONS)
        for name in ("epochs", "batch_size", "attack_steps"):
            _positive_whole(name, getattr(self, name))
        if self.subset is not None:
            _positive_whole("subset", self.subset)
        for name in ("lr", "eps", *(("beta",) if self.beta is not None else ())):
            if not isinstance(getattr(self, name), Schedule):
                raise ConfigError(
                    f"{name} must be a Schedule, e.g. Constant({getattr(self, name)!r})"
                )
        _in_range("train_eps", self.train_eps, 0.0, math.inf, open_low=True)
        _in_range("weight_decay", self.weight_decay, 0.0, math.inf)
        _in_range("alpha", self.alpha, 0.0, 1.0)
        _in_range("hidden_bias", self.hidden_bias, -math.inf, math.inf)
        _in_range("ema_start", self.ema_start, 0.0, 1.0)
        if self.clip_norm is not None:
            _in_range("clip_norm", self.clip_norm, 0.0, math.inf, open_low=True)
        if self.ema is not None and not 0.0 <= self.ema < 1.0:
            raise ConfigError(f"ema must lie in [0, 1) or be None, got {self.ema!r}")
        self.make_controller()

    @property
    def backward(self) -> bool:
        """Whether the training computes backward bounds."""
        return self.loss == "mixed" and "crown" in self.method

    def make_controller(self) -> Controller:
        """A fresh controller, at `alpha`."""
        return make_controller(self.controller, **{"alpha": self.alpha, **self.controller_options})

    def make_loss(
        self,
        model: nn.Module,
        eps: float,
        *,
        clip: tuple[float, float] | None = (0.0, 1.0),
        norm: float = math.inf,
        seed: int | None = None,
    ) -> TrainingLoss:
        """The loss of this recipe for a model and a target ε, the radius of balls of a norm."""
        if self.loss == "clean":
            return TrainingLoss(model, eps, clip=clip, norm=norm)
        if self.loss == "pgd":
            steps = self.attack_steps
            return AdversarialLoss(model, eps, steps=steps, clip=clip, norm=norm, seed=seed)
        return MixedLoss(
            model,
            eps,
            method=self.method,
            subset=self.subset,
            controller=self.make_controller(),
            clip=clip,
            norm=norm,
            train_eps=self.train_eps,
            fused=self.fused,
            beta=None if self.beta is None else self.beta.at(0.0),
            seed=seed,
        )

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of this recipe; the learning rate is set per step by `lr`."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise ConfigError("the model has no parameter that requires a gradient")
        options: dict[str, Any] = {"lr": self.lr.at(0.0), "weight_decay": self.weight_decay}
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, momentum=0.9, nesterov=True, **options)
        make: Callable[..., torch.optim.Optimizer] = (
            torch.optim.AdamW if self.optimizer == "adamw" else torch.optim.Adam
        )
        return make(parameters, **options)

    def initialize(self, model: nn.Module, generator: torch.Generator | None = None) -> None:
        """Draw the weights anew where the recipe says so; otherwise leave them."""
        if self.init == "ibp":
            initialize_for_ibp(model, generator, self.hidden_bias)

    def apply(
        self,
        loss_fn: TrainingLoss,
        optimizer: torch.optim.Optimizer,
        *,
        target_eps: float,
        step: int,
        total: int,
    ) -> None:
        """Set ε and the learning rate for `step` (from 0) of `total`."""
        loss_fn.set(eps=target_eps * self.eps.value(step, total))
        if self.beta is not None and isinstance(loss_fn, MixedLoss):
            loss_fn.set(beta=self.beta.value(step, total))
        rate = self.lr.value(step, total)
        for group in optimizer.param_groups:
            group["lr"] = rate

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `recipe_from_dict` reads back."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["lr"], data["eps"] = self.lr.to_dict(), self.eps.to_dict()
        data["beta"] = None if self.beta is None else self.beta.to_dict()
        data["controller_options"] = dict(self.controller_options)
        return data


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"unknown {name} {value!r}; choose one of {', '.join(known)}")


def _positive_whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a whole number >= 1, got {value!r}")


def _in_range(name: str, value: float, low: float, high: float, open_low: bool = False) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    inside = number and math.isfinite(value) and low <= value <= high
    if not inside or (open_low and value == low):
        bracket = "(" if open_low else "["
        raise ConfigError(f"{name} must lie in {bracket}{low}, {high}], got {value!r}")


def recipe_from_dict(data: Mapping[str, Any]) -> Recipe:
    """Rebuild a recipe from `Recipe.to_dict()`, e.g. out of a run folder's config.

    Raises:
        ConfigError: a field that recipes do not have, or a bad value.
    """
    options = dict(data)
    for name in ("lr", "eps", "beta"):
        if isinstance(options.get(name), Mapping):
            options[name] = schedule_from_dict(options[name])
    unknown = sorted(set(options) - {f.name for f in dataclasses.fields(Recipe)})
    if unknown:
        raise ConfigError(f"a recipe has no field {', '.join(map(repr, unknown))}")
    return Recipe(**options)


mixtrain = Recipe()
ibp = Recipe(name="ibp", subset=None, alpha=1.0, train_eps=1.0, lr=Cosine(2e-3))
crown_ibp = Recipe(
    name="crown-ibp",
    method="crown-ibp",
    subset=None,
    alpha=1.0,
    train_eps=1.0,
    lr=Cosine(2e-3),
    fused=True,
    beta=Linear(1.0, 0.0, end=0.4),
)
pgd = Recipe(
    name="pgd",
    loss="pgd",
    alpha=1.0,
    train_eps=1.0,
    lr=Cosine(1e-3),
    init="default",
    eps=Linear(0.0, 1.0, end=0.2),
)
standard = Recipe(
    name="standard",
    loss="clean",
    alpha=0.0,
    epochs=20,
    lr=Cosine(1e-3),
    init="default",
    eps=Constant(1.0),
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (mixtrain, ibp, crown_ibp, pgd, standard)
}

# What differs from the recipe for one data set and ε.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "digits": {
        "mixtrain": {"epochs": 300, "alpha": 0.7, "train_eps": 1.4},
        "ibp": {"epochs": 120},
        "crown-ibp": {"epochs": 120},
    },
    "mnist-0.1": {
        "mixtrain": {
            "method": "crown-ibp",
            "epochs": 50,
            "train_eps": 1.3,
            "lr": Cosine(3e-3, warmup=0.05),
            "eps": Linear(0.0, 1.0, start=0.05, end=0.4),
        },
        "ibp": {"epochs": 40, "batch_size": 128},
        "pgd": {"epochs": 20, "batch_size": 128},
        "standard": {"epochs": 10, "batch_size": 128},
    },
    "mnist-0.3": {
        "mixtrain": {
            "epochs": 115,
            "batch_size": 128,
            "subset": 32,
            "train_eps": 1.05,
            "alpha": 0.7,
            "lr": Cosine(1.5e-3),
            "hidden_bias": 0.1,
        },
        "ibp": {"epochs": 40, "batch_size": 128},
        "pgd": {"epochs": 20, "batch_size": 128},
        "standard": {"epochs": 10, "batch_size": 128},
    },
}


def get_recipe(name: str = "mixtrain", preset: str | None = None, **changes: Any) -> Recipe:
    """A recipe by name, adapted to a data set, with single values changed.

    Args:
        name: `"mixtrain"`, `"ibp"`, `"crown-ibp"`, `"pgd"` or `"standard"`.
        preset: `"digits"`, `"mnist-0.1"`, `"mnist-0.3"` or None for the recipe as it is.
        changes: fields of `Recipe`; they win.

    Raises:
        ConfigError: unknown recipe, preset or field, or a bad value.
    """
    _one_of("recipe", name, tuple(RECIPES))
    if preset is not None:
        _one_of("preset", preset, tuple(PRESETS))
    adapted = {} if preset is None else PRESETS[preset].get(name, {})
    return recipe_from_dict(
        {
            **{f.name: getattr(RECIPES[name], f.name) for f in dataclasses.fields(Recipe)},
            **adapted,
            **changes,
        }
    )


def preset_for(data: str, eps: float) -> str | None:
    """The preset for a data set's name and ε, None where there is none."""
    if data == "digits":
        return "digits"
    if data == "mnist":
        return "mnist-0.1" if eps <= 0.2 else "mnist-0.3"
    return None
