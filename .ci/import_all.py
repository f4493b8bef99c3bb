"""Import every module of an installed boundgraph, outside the repository, and run it once."""

import importlib
import pkgutil
import sys
from pathlib import Path

import boundgraph

root = Path(sys.argv[1]).resolve()
home = Path(boundgraph.__file__).resolve().parent
# The environments may lie inside the repository; its sources must not be what is imported.
sources = [root / name for name in ("boundgraph", "passes", "frontends", "cli")]
assert not any(home.is_relative_to(source) for source in sources), f"imported from {home}"

names = [info.name for info in pkgutil.walk_packages(boundgraph.__path__, "boundgraph.")]
for name in names:
    if name.endswith(".__main__"):
        continue
    module = importlib.import_module(name)
    place = Path(module.__file__).resolve()
    assert not any(place.is_relative_to(source) for source in sources), f"{name} from {place}"
expected = sum(1 for source in sources for _ in source.rglob("*.py")) - 1
assert len(names) == expected, f"the wheel has {len(names)} modules, the sources {expected}"

import torch  # noqa: E402

model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
bounds = boundgraph.bound(model, method="mix")(boundgraph.LinfBall(torch.zeros(1, 2), eps=0.1))
assert bool((bounds.lower <= bounds.upper).all())
for data in ("data", "."):
    assert (home / data).exists()
print(f"imported {len(names)} modules from {home}")
