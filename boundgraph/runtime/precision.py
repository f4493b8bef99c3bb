"""Certification in the precision that the numbers claim."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from boundgraph.errors import ConfigError

_REDUCED = ("tf32", "bf16")
# torch fills these modules at run time, where a type checker cannot look.
_BACKENDS: Any = torch.backends


@contextmanager
def certified_precision(model: nn.Module) -> Iterator[None]:
    """Run a certification in full float32 or float64.

    Autocast, half-precision weights and reduced-precision matrix products are refused:
    their rounding, near 1e-3, is beyond what a bound computed in them may claim. cuDNN's
    TF32 convolutions, which torch switches on by default, are switched off meanwhile.

    Raises:
        ConfigError: naming what is reduced and the line that changes it.
    """
    devices = {tensor.device.type for tensor in model.parameters()} or {"cpu"}
    for device in sorted(devices):
        if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
            raise ConfigError(
                "certification under autocast would claim more than half precision can carry; "
                "evaluate outside torch.autocast"
            )
    _refuse_half(model)
    _refuse_reduced_products(devices)
    convolution = _BACKENDS.cudnn.conv
    before = convolution.fp32_precision
    try:
        if "cuda" in devices:
            convolution.fp32_precision = "ieee"
        yield
    finally:
        if "cuda" in devices:
            convolution.fp32_precision = before


def _refuse_half(model: nn.Module) -> None:
    half = [
        f"{name} ({parameter.dtype})"
        for name, parameter in model.named_parameters()
        if parameter.dtype in (torch.float16, torch.bfloat16)
    ]
    if half:
        raise ConfigError(
            f"certification needs float32 or float64 weights, but {len(half)} parameter(s) have "
            f"half precision, e.g. {half[0]}; call model.float()"
        )


def _refuse_reduced_products(devices: set[str]) -> None:
    watched = []
    if "cpu" in devices:
        watched += [
            ("mkldnn.matmul", _BACKENDS.mkldnn.matmul.fp32_precision),
            ("mkldnn.conv", _BACKENDS.mkldnn.conv.fp32_precision),
        ]
    if "cuda" in devices:
        watched.append(("cuda.matmul", _BACKENDS.cuda.matmul.fp32_precision))
    reduced = [(name, value) for name, value in watched if value in _REDUCED]
    if reduced:
        name, value = reduced[0]
        raise ConfigError(
            f"torch.backends.{name}.fp32_precision is {value!r}: products would carry about "
            "three digits, too few for a certificate. Call "
            "torch.set_float32_matmul_precision('highest') or set it to 'ieee'"
        )
