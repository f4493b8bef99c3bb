"""Certificates of networks that nobody here wrote, and over p-balls."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact_bounds import exact_program
from torch import Tensor, nn
from torchvision.models.densenet import DenseNet
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.shufflenetv2 import ShuffleNetV2

import boundgraph as bg
from boundgraph.verification import Certificate, check_certificate, checker
from boundgraph.verification._arguments import one_sample

FOLDER = Path(checker.__file__).parent
# What `python checker.py` does where torch cannot be imported.
WITHOUT_TORCH = (
    "import sys; sys.modules['torch'] = sys.modules['boundgraph'] = None\n"
    "import checker; sys.exit(checker.main(sys.argv[1:]))"
)


def residual() -> nn.Module:
    """torchvision's residual blocks, with batch normalisation and a projected shortcut."""
    shortcut = nn.Sequential(nn.Conv2d(4, 8, 1, 2, bias=False), nn.BatchNorm2d(8))
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1), BasicBlock(4, 4), Bottleneck(4, 2, 2, shortcut),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def dense() -> nn.Module:
    return DenseNet(4, (2, 2), 8, bn_size=2, num_classes=3)


def shuffled() -> nn.Module:
    return ShuffleNetV2([1, 1, 1], [8, 16, 24, 32, 48], num_classes=3)


def _with_statistics(model: nn.Module, size: int) -> nn.Module:
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(16, 3, size, size))
    return model.eval()


FOREIGN: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "residual": (residual, 12),
    "densenet": (dense, 16),
    "shufflenet": (shuffled, 32),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_networks_of_others_are_certified_and_checked_without_torch(
    name: str, tmp_path: Path
) -> None:
    make, size = FOREIGN[name]
    torch.manual_seed(0)
    x = torch.rand(1, 3, size, size)
    model = _with_statistics(make(), size)
    verdict = bg.verify(
        model, bg.LinfBall(x, 1e-5), bg.Margin(3), labels=model(x).argmax(1), certificate=True,
        methods=("ibp", "crown-ibp"), attack=None,
    )  # fmt: skip
    assert isinstance(verdict, bg.Proved), verdict
    certificate = verdict.certificate
    assert certificate is not None, verdict.uncertified
    path = certificate.save(tmp_path / "proof.json", embed=False)
    assert check_certificate(path, model)
    command = [sys.executable, "-c", WITHOUT_TORCH, str(path), "--json"]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accepted"]
    other = copy.deepcopy(model)
    with torch.no_grad():
        last = list(other.parameters())[-1]
        last[0] = torch.nextafter(last[0], torch.tensor(9.0))
    assert "hash" in check_certificate(path, other).reason


def _run_without_torch(*arguments: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments, "--json"]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


class Transposed(nn.Module):
    """A weight that is computed from a parameter, and an input that stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)
        self.matrix = nn.Parameter(torch.randn(6, 3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(self.inner(x)) @ (self.matrix * 2.0) + y


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_weights_of_a_model_are_recognised_without_torch(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, y = Transposed().eval(), torch.rand(1, 4), torch.zeros(1, 3)
    verdict = bg.verify(
        model, [bg.LinfBall(x, 1e-4), y], bg.Margin(3), labels=model(x, y).argmax(1),
        certificate=True, attack=None,
    )  # fmt: skip
    assert isinstance(verdict, bg.Proved) and verdict.certificate is not None
    proof = str(verdict.certificate.save(tmp_path / "proof.json"))
    # As some other program named and saved them.
    weights = {f"net.{name}": p.detach().numpy() for name, p in model.named_parameters()}
    path = tmp_path / f"weights.{kind}"

    def save() -> None:
        if kind == "npz":
            np.savez(path, **weights)
        else:
            pytest.importorskip("safetensors.numpy").save_file(weights, path)

    save()
    code, found = _run_without_torch(proof, "--weights", str(path))
    assert code == 0 and found["accepted"], found
    weights["net.inner.bias"] = np.nextafter(weights["net.inner.bias"], np.float32(9.0))
    save()
    code, found = _run_without_torch(proof, "--weights", str(path))
    assert code == 1 and "inner.bias" in found["reason"], found


def small() -> tuple[nn.Module, Tensor, int]:
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)
    ).eval()
    x = torch.rand(1, 3, 4)
    return model, x, int(model(x).argmax())


def over_ball(norm: float) -> tuple[nn.Module, Tensor, float, Certificate]:
    """A proof whose ball is as large as crown can do, and so far from its box."""
    model, x, label = small()
    rows = torch.eye(3)[label] - torch.eye(3)[torch.arange(3) != label]
    found, eps = None, 1.0
    while found is None and eps > 1e-3:
        verdict = bg.verify(
            model, bg.LpBall(x, eps, norm), bg.LinearSpec(rows), certificate=True, attack=None
        )
        found = verdict.certificate if isinstance(verdict, bg.Proved) else None
        eps *= 0.8 if found is None else 1.0
    assert found is not None
    return model, x, eps, found


def _resealed(document: dict[str, Any], ball: dict[str, Any] | None) -> dict[str, Any]:
    changed = copy.deepcopy({k: v for k, v in document.items() if k != "seal"})
    (entry,) = changed["region"].values()
    entry.pop("ball")
    if ball is not None:
        entry["ball"] = ball
    return {**changed, "seal": checker.seal(changed)}


@pytest.mark.parametrize("norm", [1.0, 2.0])
def test_balls_are_certified_by_their_dual_norm(norm: float) -> None:
    model, x, eps, certificate = over_ball(norm)
    assert check_certificate(certificate, model)
    document, tensors = certificate.document, certificate.tensors
    (entry,) = document["region"].values()
    ball = entry["ball"]
    assert float.fromhex(ball["radius"]) == eps
    # Its box alone is not proved, nor is a larger ball, nor one of the other norm.
    wide = [(float.fromhex(v) - 30.0 * eps).hex() for v in entry["lower"]]
    high = [(float.fromhex(v) + 30.0 * eps).hex() for v in entry["upper"]]
    assert not checker.check_document(_resealed(document, None), tensors, exact=False)
    larger = _resealed(document, {**ball, "radius": (eps * 20.0).hex()})
    (changed,) = larger["region"].values()
    changed |= {"lower": wide, "upper": high}
    larger["seal"] = checker.seal(larger)
    assert not checker.check_document(larger, tensors, exact=False)
    for forged in ({**ball, "norm": 3}, {**ball, "radius": (-eps).hex()}, {**ball, "center": []},
                   {"radius": ball["radius"], "norm": 2}, {**ball, "radius": "nan"}):  # fmt: skip
        assert not checker.check_document(_resealed(document, forged), tensors, exact=False)
    # The margins that were proved hold at rational points of the ball.
    reference = exact_program(model, [bg.LpBall(x, eps, norm)])
    label = int(model(x).argmax())
    center = [Fraction(v) for v in x.reshape(-1).tolist()]
    found = checker.check_document(_resealed(document, ball), tensors)
    assert found
    for i in range(12):
        point = list(center)
        point[i] += Fraction(eps) * (-1) ** i
        shaped = torch.zeros(1, 3, 4).double().numpy().astype(object)
        shaped.reshape(-1)[:] = point
        (value,) = reference(shaped)
        margins = [value[0, label] - value[0, j] for j in range(3) if j != label]
        assert all(m >= Fraction(b) for m, b in zip(margins, found.margins, strict=True))


@pytest.mark.parametrize("norm", [1, 2])
def test_dual_norms_are_rounded_up(norm: int) -> None:
    from boundgraph.verification.checker_numbers import Arithmetic

    draw = np.random.default_rng(0)
    for exact in (False, True):
        ar = Arithmetic(exact)
        for _ in range(50):
            rows = draw.normal(size=(3, 5)) * 10.0 ** draw.integers(-160, 150)
            found = ar.dual_norm(ar.array(rows), norm)
            for row, bound in zip(rows, found, strict=True):
                numbers = [Fraction(float(v)) for v in row]
                if norm == 1:
                    assert Fraction(bound) >= max(map(abs, numbers))
                else:
                    assert Fraction(bound) ** 2 >= sum(v * v for v in numbers)


def test_a_radius_is_not_rounded_on_its_way_to_a_sample() -> None:
    center = torch.zeros(2, 3)
    # 0.7 is no float32, and the nearest one is smaller.
    assert one_sample(bg.L2Ball(center, 0.7), 1, 2).eps == 0.7  # type: ignore[union-attr]
    each = bg.L2Ball(center, torch.tensor([0.5, 0.25]))
    assert float(one_sample(each, 1, 2).eps) == 0.25  # type: ignore[union-attr]
