"""What `train`, `evaluate` and `attack` work on: a network, its weights and its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boundgraph.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import nn

    from boundgraph.data import DataSet


@dataclass(frozen=True)
class Subject:
    """A network and data for it.

    Args:
        model: in evaluation mode.
        data: the data set.
        identity: plain data from which `rebuild` makes the network again.
        run: the run folder it came from, if it did.
        config: of that run.
    """

    model: nn.Module
    data: DataSet
    identity: dict[str, Any]
    run: Path | None = None
    config: Mapping[str, Any] | None = None


def load_data(name: str, download: bool) -> DataSet:
    from boundgraph.data import load

    return load(name, download=download)


def new_network(spec: str | None, data: DataSet, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """A network to train, by name or from a model file, and its identity.

    Raises:
        ConfigError: an unknown name.
        ModelFileError: an unfit model file.
    """
    from boundgraph.training.networks import make_network, network_for

    if spec is not None and ".py" in spec:
        return _from_file(spec)
    name = spec or network_for(data.image_shape)
    model = make_network(name, data.image_shape, data.classes, seed)
    shape, classes = data.image_shape, data.classes
    source = (
        "from boundgraph.training import make_network\n"
        f'model = make_network("{name}", {shape}, {classes})'
    )
    return model, {"network": name, "shape": shape, "classes": classes, "source": source}


def _from_file(spec: str) -> tuple[nn.Module, dict[str, Any]]:
    from boundgraph.cli._model_file import load_model_file

    loaded = load_model_file(spec, example=False)
    path = str(loaded.path.resolve())
    source = (
        "from boundgraph.cli._model_file import load_model_file\n"
        f'model = load_model_file("{path}:{loaded.name}", example=False).model'
    )
    return loaded.model, {"file": path, "name": loaded.name, "source": source}


def rebuild(identity: Mapping[str, Any]) -> nn.Module:
    """The network of a run, with fresh weights."""
    from boundgraph.training.networks import make_network

    if "network" in identity:
        channels, height, width = identity["shape"]
        shape = (channels, height, width)
        return make_network(identity["network"], shape, identity["classes"], 0)
    if "file" in identity:
        return _from_file(f"{identity['file']}:{identity['name']}")[0]
    raise ConfigError(
        "this run was started from Python, so its network cannot be built here; put it into a "
        "model file and pass MODEL.py with --weights RUN_DIR/checkpoint.pt"
    )


def load_subject(
    target: str,
    data: str | None,
    weights: Path | None,
    *,
    download: bool = False,
    device: str | None = None,
) -> Subject:
    """A run folder's network and data, or a model file's.

    Raises:
        ConfigError: the target is neither, or its network cannot be built.
        CheckpointError: the weights are corrupt or do not fit.
    """
    from boundgraph.training.run import RunFolder

    if Path(target).is_dir():
        run = RunFolder(Path(target))
        config = run.config()
        model, identity = rebuild(config["model"]), dict(config["model"])
        load_weights(model, weights or run.checkpoint_path)
        source = load_data(data or config["data"].get("source", config["data"]["name"]), download)
        return Subject(model.to(device).eval(), source, identity, run.path, config)
    if ".py" not in target:
        raise ConfigError(f"{target} is neither a run folder nor a model file (MODEL.py[:NAME])")
    model, identity = _from_file(target)
    if weights is not None:
        load_weights(model, weights)
    return Subject(model.to(device).eval(), load_data(data or "digits", download), identity)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a run's checkpoint, or a state_dict that torch saved.

    Raises:
        CheckpointError: the file is missing, corrupt or of another network.
    """
    import torch

    from boundgraph.training.checkpoint import is_checkpoint, load_checkpoint

    try:
        if is_checkpoint(path):
            state = load_checkpoint(path)["weights"]
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"weights {path} cannot be read: {error}") from error
    except CheckpointError:
        raise
    except Exception as error:
        # torch.load raises a dozen kinds for files that are not its own.
        raise CheckpointError(
            f"weights {path} are corrupt, or neither a checkpoint nor a state_dict saved by "
            f"torch: {error}"
        ) from error
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the weights in {path} do not fit the model: {error}") from error
