"""Tensors of a model that have several names: a program reads each under one of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from operator import attrgetter

import torch
from torch import Tensor, nn

from boundgraph.errors import ConfigError


def shared_names(model: nn.Module, read: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """The names of each parameter or buffer that has several, one of which a program reads."""
    groups: dict[int, list[str]] = {}
    for tensors in (
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    ):
        for name, tensor in tensors:
            groups.setdefault(id(tensor), []).append(name)
    several = (tuple(names) for names in groups.values() if len(names) > 1)
    return tuple(names for names in several if any(name in read for name in names))


def check_shared(model: nn.Module, groups: Iterable[tuple[str, ...]]) -> None:
    """Raise ConfigError where names that were of one tensor no longer are."""
    for first, *others in groups:
        for other in others:
            if not _same(_tensor(model, first), _tensor(model, other)):
                raise ConfigError(
                    f"{first} and {other} were one tensor when the program was compiled, which "
                    "reads it under one of these names, and now they are two: compile again"
                )


def _tensor(model: nn.Module, name: str) -> Tensor | None:
    try:
        found = attrgetter(name)(model)
    except AttributeError:
        return None
    return found if isinstance(found, torch.Tensor) else None


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return False
    # Loading a state with assign=True makes two parameters over the same memory.
    if one is other:
        return True
    places = [(t.untyped_storage().data_ptr(), int(t.storage_offset())) for t in (one, other)]
    alike = one.shape == other.shape and one.stride() == other.stride()
    return places[0] == places[1] and bool(alike)
