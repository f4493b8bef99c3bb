"""A module around the user's, with the signature of one call."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from boundgraph.errors import CaptureError, Diagnostic

MODEL = "model"


class _Output:
    """How the outputs were nested; an object of its own, since exporting undoes assignments."""

    spec: pytree.TreeSpec


class CallOf(nn.Module):
    """Calls the model as a module, so that its own hooks run, and flattens its outputs.

    Its parameters are the model's, under the prefix `model.`.

    Args:
        model: the user's module.
        positional: how many inputs are positional.
        keywords: names of the others.
    """

    def __init__(self, model: nn.Module, positional: int, keywords: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self._positional = positional
        self._keywords = tuple(keywords)
        self.output = _Output()

    def _run(self, *inputs: Any) -> tuple[Any, ...]:
        given = dict(zip(self._keywords, inputs[self._positional :], strict=True))
        output = self.model(*inputs[: self._positional], **given)
        leaves, spec = pytree.tree_flatten(output)
        for leaf in leaves:
            if not isinstance(leaf, Tensor | fx.Proxy):
                raise CaptureError(
                    Diagnostic(
                        f"the model returns {type(leaf).__name__}, where tensors or tuples, lists "
                        "and dicts of tensors are expected",
                        help="wrap the model in a module that returns only its tensors",
                    )
                )
        self.output.spec = spec
        return tuple(leaves)


def call_of(model: nn.Module, positional: int, keywords: Sequence[str]) -> CallOf:
    """The wrapper, with a `forward` that names each input, as tracers want it."""
    names = ", ".join(f"a{i}" for i in range(positional + len(keywords)))
    scope: dict[str, Any] = {}
    exec(f"def forward(self, {names}):\n    return self._run({names})", scope)
    kind = type("CallOf", (CallOf,), {"forward": scope["forward"]})
    return kind(model, positional, keywords)  # type: ignore[no-any-return]


def input_names(model: nn.Module, positional: int, keywords: Sequence[str]) -> list[str]:
    """Names of the inputs, by the signature of the model's `forward`."""
    names: list[str] = []
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except ValueError:
        # A compiled forward, which no frontend can read, has none.
        parameters = inspect.Signature().parameters.values()
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{i}" for i in range(positional - len(names))]
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
    names += [f"input_{i}" for i in range(len(names), positional)]
    return [*names[:positional], *keywords]


def strip(path: str) -> str:
    """A path below the wrapper as a path below the model."""
    return "" if path == MODEL else path.removeprefix(f"{MODEL}.")
