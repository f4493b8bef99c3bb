"""Certified training: losses, schedules, controllers, the compiled step and recipes."""

from boundgraph.training.adversarial import AdversarialLoss
from boundgraph.training.checkpoint import load_checkpoint, save_checkpoint
from boundgraph.training.controllers import (
    CONTROLLERS,
    AccuracyFloorController,
    BalancedController,
    ConstantController,
    Controller,
    RampController,
    make_controller,
)
from boundgraph.training.fit import FitResult, fit
from boundgraph.training.initialization import WeightAverage, initialize_for_ibp
from boundgraph.training.losses import LossParts, MixedLoss, TrainingLoss, gradient_norms
from boundgraph.training.networks import NETWORKS, make_network
from boundgraph.training.recipes import (
    PRESETS,
    RECIPES,
    Recipe,
    get_recipe,
    preset_for,
    recipe_from_dict,
)
from boundgraph.training.schedules import (
    SCHEDULES,
    Constant,
    Cosine,
    Linear,
    Piecewise,
    Schedule,
    Smoothed,
    Steps,
    schedule_from_dict,
)
from boundgraph.training.step import Step, StepWarning, compile_step

__all__ = [
    "CONTROLLERS",
    "NETWORKS",
    "PRESETS",
    "RECIPES",
    "SCHEDULES",
    "AccuracyFloorController",
    "AdversarialLoss",
    "BalancedController",
    "Constant",
    "ConstantController",
    "Controller",
    "Cosine",
    "FitResult",
    "Linear",
    "LossParts",
    "MixedLoss",
    "Piecewise",
    "RampController",
    "Recipe",
    "Schedule",
    "Smoothed",
    "Step",
    "StepWarning",
    "Steps",
    "TrainingLoss",
    "WeightAverage",
    "compile_step",
    "fit",
    "get_recipe",
    "gradient_norms",
    "initialize_for_ibp",
    "load_checkpoint",
    "make_controller",
    "make_network",
    "preset_for",
    "recipe_from_dict",
    "save_checkpoint",
    "schedule_from_dict",
]
