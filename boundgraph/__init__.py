"""BoundGraph: a compiler for certified bounds on PyTorch networks.

>>> import torch, boundgraph as bg
>>> model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
>>> bounds = bg.bound(model, method="mix")(bg.LinfBall(torch.zeros(1, 2), eps=0.1))
>>> bounds.lower.shape
torch.Size([1, 3])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that defines it. Loaded on first use, so that importing
# boundgraph costs next to nothing beyond importing torch.
_EXPORTS = {
    "Bounds": "boundgraph.runtime.module",
    "BoundProgram": "boundgraph.runtime.module",
    "Box": "boundgraph.domains.regions",
    "Interval": "boundgraph.domains.interval",
    "LinearSpec": "boundgraph.domains.specs",
    "L1Ball": "boundgraph.domains.regions",
    "L2Ball": "boundgraph.domains.regions",
    "LinfBall": "boundgraph.domains.regions",
    "LpBall": "boundgraph.domains.regions",
    "Margin": "boundgraph.domains.specs",
    "Proved": "boundgraph.verification",
    "Refuted": "boundgraph.verification",
    "Unknown": "boundgraph.verification",
    "bound": "boundgraph.compiler",
    "compile": "boundgraph.compiler",
    "plan_of": "boundgraph.compiler",
    "evaluate": "boundgraph.evaluation",
    "freeze": "boundgraph.ops.custom",
    "leaf": "boundgraph.ops.custom",
    "register_op": "boundgraph.ops.custom",
    "Lines": "boundgraph.domains.linear_form",
    "LinearBounds": "boundgraph.domains.linear_bounds",
    "linear_bounds": "boundgraph.linearize",
    "load": "boundgraph.runtime.saved",
    "verify": "boundgraph.verification.verify",
}
_MODULES = {
    "attack": "boundgraph.attacks",
    "testing": "boundgraph.testing",
    "training": "boundgraph.training",
    "verification": "boundgraph.verification",
}

if TYPE_CHECKING:
    import boundgraph.attacks as attack
    import boundgraph.testing as testing
    import boundgraph.training as training
    import boundgraph.verification as verification
    from boundgraph.compiler import bound as bound
    from boundgraph.compiler import compile as compile
    from boundgraph.compiler import plan_of as plan_of
    from boundgraph.domains.interval import Interval as Interval
    from boundgraph.domains.linear_bounds import LinearBounds as LinearBounds
    from boundgraph.domains.linear_form import Lines as Lines
    from boundgraph.domains.regions import Box as Box
    from boundgraph.domains.regions import L1Ball as L1Ball
    from boundgraph.domains.regions import L2Ball as L2Ball
    from boundgraph.domains.regions import LinfBall as LinfBall
    from boundgraph.domains.regions import LpBall as LpBall
    from boundgraph.domains.specs import LinearSpec as LinearSpec
    from boundgraph.domains.specs import Margin as Margin
    from boundgraph.evaluation import evaluate as evaluate
    from boundgraph.linearize import linear_bounds as linear_bounds
    from boundgraph.ops.custom import freeze as freeze
    from boundgraph.ops.custom import leaf as leaf
    from boundgraph.ops.custom import register_op as register_op
    from boundgraph.runtime.module import BoundProgram as BoundProgram
    from boundgraph.runtime.module import Bounds as Bounds
    from boundgraph.runtime.saved import load as load
    from boundgraph.verification import Proved as Proved
    from boundgraph.verification import Refuted as Refuted
    from boundgraph.verification import Unknown as Unknown
    from boundgraph.verification.verify import verify as verify

__all__ = [
    "BoundProgram",
    "Bounds",
    "Box",
    "Interval",
    "L1Ball",
    "L2Ball",
    "LinearSpec",
    "Lines",
    "LinfBall",
    "LpBall",
    "Margin",
    "Proved",
    "Refuted",
    "Unknown",
    "__version__",
    "attack",
    "bound",
    "compile",
    "evaluate",
    "freeze",
    "leaf",
    "linear_bounds",
    "load",
    "plan_of",
    "register_op",
    "testing",
    "training",
    "verification",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _EXPORTS:
        found = getattr(importlib.import_module(_EXPORTS[name]), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module 'boundgraph' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
