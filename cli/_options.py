"""Options that several commands share."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import nn

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line and nothing else.")
]
ModelFile = Annotated[
    str,
    typer.Argument(
        metavar="MODEL.py[:NAME]",
        help="A Python file that defines `model` (a module, or a function that returns one) and "
        "`example_input` (a tensor or a tuple of them, or a function). NAME selects another model.",
        show_default=False,
    ),
]
Target = Annotated[
    str,
    typer.Argument(
        metavar="RUN_DIR|MODEL.py[:NAME]",
        help="A run folder of `boundgraph train`, or a model file.",
        show_default=False,
    ),
]
Method = Annotated[
    str,
    typer.Option(
        "--method", "-m", help="ibp, symbolic, mix, crown-ibp, crown, alpha-crown or auto."
    ),
]
MaxTime = Annotated[
    float | None,
    typer.Option(
        "--max-time", help="With --method auto: seconds that bounds may take, by estimate."
    ),
]
MaxMemory = Annotated[int | None, typer.Option("--max-memory", help="Bytes that bounds may take.")]
Methods = Annotated[
    str,
    typer.Option(
        "--method",
        "-m",
        help="Bound method, or several with commas: each is tried on what the ones before it "
        "left open, e.g. ibp,crown; `cascade` for those of verify.",
    ),
]
Rounding = Annotated[
    str,
    typer.Option(
        help="nearest, or sound: bounds that hold in exact real arithmetic.",
    ),
]
Clip = Annotated[
    str,
    typer.Option("--clip", help="Range of valid inputs as LOW,HIGH; or none."),
]
Norm = Annotated[
    str, typer.Option("--norm", help="Norm of the ball of radius EPS: inf, 2, 1 or any p >= 1.")
]
# Where a run may say what it was trained for.
RunNorm = Annotated[
    str | None,
    typer.Option(
        "--norm",
        help="Norm of the ball of radius EPS: inf, 2, 1 or any p >= 1.",
        show_default="inf, or the run's",
    ),
]
Threads = Annotated[
    int | None, typer.Option(help="CPU threads to compute with.", show_default="torch's choice")
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1 …", show_default="where the model is")
]
DataName = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="digits, mnist, cifar10, PATH.npz or a folder in ImageFolder layout.",
        show_default="digits, or the run's",
    ),
]
Download = Annotated[
    bool, typer.Option("--download", help="Let torchvision fetch mnist or cifar10.")
]
Weights = Annotated[
    Path | None,
    typer.Option(help="Load these weights: a checkpoint of a run, or a saved state_dict."),
]
Limit = Annotated[int | None, typer.Option(help="Use only the first held-out images.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]


def examples(*commands: str) -> str:
    """The foot of a command's help."""
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(f"  $ {command}" for command in commands)


def parse_clip(text: str) -> tuple[float, float] | None:
    """`LOW,HIGH` or `none`.

    Raises:
        ConfigError: anything else.
    """
    from boundgraph.errors import ConfigError

    if text.strip().lower() == "none":
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--clip must be LOW,HIGH or none, got {text!r}") from error
    if not low < high:
        raise ConfigError(f"--clip needs LOW < HIGH, got {text!r}")
    return low, high


def norm_for(text: str | None, config: Mapping[str, Any] | None) -> float:
    """p of a ball as asked for, or as the run with this configuration was trained for."""
    if text is not None:
        return parse_norm(text)
    return math.inf if config is None else float(config["train"].get("norm", math.inf))


def parse_norm(text: str) -> float:
    """`inf` or a number >= 1.

    Raises:
        ConfigError: anything else.
    """
    from boundgraph.errors import ConfigError

    try:
        norm = float(text)
    except ValueError as error:
        raise ConfigError(f"--norm must be inf or a number >= 1, got {text!r}") from error
    if not norm >= 1:
        raise ConfigError(f"--norm must be inf or a number >= 1, got {text!r}")
    return norm


def parse_methods(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(name.strip() for name in text.replace("+", ",").split(",") if name.strip())


def set_threads(threads: int | None) -> None:
    """Limit torch's threads where asked to."""
    import torch

    from boundgraph.errors import ConfigError

    if threads is None:
        return
    if threads < 1:
        raise ConfigError(f"--threads must be at least 1, got {threads}")
    torch.set_num_threads(threads)


def spare_threads(network: nn.Module, image_shape: Sequence[int]) -> None:
    """One thread for a network whose steps are too small to share, unless the user says otherwise.

    Threads that wait for each other take more time than the digits' step itself: on two busy
    cores, training took 54 s with one thread and over 330 s with two.
    """
    import torch

    parameters = sum(parameter.numel() for parameter in network.parameters())
    small = parameters <= 10**6 and math.prod(image_shape) <= 256
    if small and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def check_device(device: str | None) -> None:
    """Raise ConfigError for a device that torch does not have here."""
    import torch

    from boundgraph.errors import ConfigError

    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"device {device!r} cannot be used: {first}") from error
