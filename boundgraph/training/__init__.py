"""Certified training: losses, schedules, controllers, the compiled step and recipes."""

from boundgraph.training.adversarial import AdversarialLoss
from boundgraph.training.controllers import (
    CONTROLLERS,
    AccuracyFloorController,
    BalancedController,
    ConstantController,
    Controller,
    RampController,
    make_controller,
)
from boundgraph.training.initialization import WeightAverage, initialize_for_ibp
from boundgraph.training.losses import LossParts, MixedLoss, TrainingLoss, gradient_norms
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
    "get_recipe",
    "gradient_norms",
    "initialize_for_ibp",
    "make_controller",
    "preset_for",
    "recipe_from_dict",
    "schedule_from_dict",
]
