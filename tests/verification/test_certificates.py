"""Certificates: made, saved, checked; altered ones are rejected or still tell the truth."""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.errors import CertificateError
from boundgraph.verification import (
    All,
    Certificate,
    Constraint,
    check_certificate,
    checker,
)
from boundgraph.verification import (
    Any as AnyOf,
)
from boundgraph.verification.checker_bounds import Engine
from boundgraph.verification.checker_network import Network
from boundgraph.verification.checker_numbers import Arithmetic, Refused

ROOT = Path(checker.__file__).parent


def _model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 2, 2, stride=1, padding=1),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 5),
        nn.LeakyReLU(0.1),
        nn.Linear(5, 4),
        nn.Tanh(),
        nn.Linear(4, 3),
    ).eval()


def _proved(model: nn.Module, x: Tensor, eps: float, **options: Any) -> bg.Proved:
    label = model(x).argmax(1)
    verdict = bg.verify(
        model, bg.LinfBall(x, eps), bg.Margin(3), labels=label, certificate=True, **options
    )
    assert isinstance(verdict, bg.Proved), verdict
    return verdict


@pytest.fixture(scope="module")
def made() -> tuple[nn.Module, Certificate]:
    """With a margin that is nearly used up, so that changes matter."""
    model, x = _model(), torch.rand(1, 1, 3, 3)
    certificate = _proved(model, x, 0.06, methods=("ibp", "crown-ibp", "crown")).certificate
    assert certificate is not None
    return model, certificate


def test_a_certificate_is_accepted_by_every_door(
    made: tuple[nn.Module, Certificate], tmp_path: Path
) -> None:
    model, certificate = made
    path = certificate.save(tmp_path / "proof.json")
    beside = certificate.save(tmp_path / "other" / "proof.json", embed=False)
    assert (beside.parent / "proof.npz").is_file()
    for where in (certificate, path, beside):
        found = check_certificate(where, model)
        assert found, found.reason
        assert len(found.margins) == 2 and min(found.margins) > 0
    assert check_certificate(path, exact=True).arithmetic == "rational"


def test_the_checker_runs_alone_and_without_torch(
    made: tuple[nn.Module, Certificate], tmp_path: Path
) -> None:
    for name in ("checker", "checker_bounds", "checker_maps", "checker_network", "checker_numbers"):
        (tmp_path / f"{name}.py").write_text((ROOT / f"{name}.py").read_text())
    path = made[1].save(tmp_path / "proof.json", embed=False)
    code = (
        "import sys; sys.modules['torch'] = sys.modules['boundgraph'] = None\n"
        "import checker; status = checker.main(sys.argv[1:])\n"
        "loaded = {name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names\n"
        "print(sorted(n for n in loaded if not n.startswith('_'))); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "accepted" in done.stdout
    for name in ("boundgraph", "torch", "scipy", "networkx"):
        assert f"sys.modules['{name}']" in code or f"'{name}'" not in done.stdout
    broken = json.loads(path.read_text())
    broken["region"] = {}
    path.write_text(json.dumps(broken))
    done = subprocess.run([sys.executable, str(tmp_path / "checker.py"), str(path)], text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 1 and "REJECTED" in done.stdout


@pytest.mark.parametrize("place", ["9.weight", "1.running_var", "5.bias"])
def test_another_model_is_rejected(made: tuple[nn.Module, Certificate], place: str) -> None:
    model = copy.deepcopy(made[0])
    with torch.no_grad():
        tensor = model.state_dict()[place].view(-1)
        tensor[0] = torch.nextafter(tensor[0], torch.tensor(9.0))
    found = check_certificate(made[1], model)
    assert not found and "hash" in found.reason
    model = copy.deepcopy(made[0])
    model[6] = nn.LeakyReLU(0.2)
    found = check_certificate(made[1], model)
    assert not found and "another program" in found.reason


def test_weights_beside_are_checked(made: tuple[nn.Module, Certificate], tmp_path: Path) -> None:
    path = made[1].save(tmp_path / "proof.json", embed=False)
    assert check_certificate(path, weights=tmp_path / "proof.npz")
    tensors = {name: tensor.copy() for name, tensor in made[1].tensors.items()}
    tensors["9.bias"][0] = np.nextafter(tensors["9.bias"][0], np.float32(9))
    np.savez(tmp_path / "proof.npz", **tensors)
    assert "hash" in check_certificate(path).reason
    (tmp_path / "proof.npz").unlink()
    assert "missing" in check_certificate(path).reason
    with pytest.raises(CertificateError, match="does not exist"):
        check_certificate(tmp_path / "none.json")


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(item, dict | list):
            yield from _leaves(item, (*path, key))
        else:
            yield (*path, key)


def _altered(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + rng.choice((-1, 1, 2))
    if isinstance(value, float):
        return value * rng.choice((-1.0, 0.5, 2.0)) + rng.choice((0.0, 0.1))
    if value.startswith(("0x", "-0x")):
        number = float.fromhex(value)
        tweaks = (number + 0.5, number - 0.5, -number, number * 1.01, number * 0.99, 0.0, 1e9)
        return rng.choice(tweaks).hex()
    return value[::-1]


def _put(document: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    here: Any = changed
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    return changed


def _still_true(document: dict[str, Any], tensors: dict[str, np.ndarray], draw: Any) -> bool:
    """The claim of the document, tried at random points and corners in exact arithmetic."""
    ar = Arithmetic(exact=True)
    network = Network(document["program"], tensors, ar)

    def numbers(texts: list[str]) -> Any:
        return ar.array([float.fromhex(text) for text in texts])

    inputs = [document["region"][given["name"]] for given in document["program"]["inputs"]]
    region = [(numbers(pair["lower"]), numbers(pair["upper"])) for pair in inputs]
    matrix = np.stack([numbers(row) for row in document["spec"]["matrix"]])
    offset = numbers(document["spec"]["offset"])
    for _ in range(6):
        point = []
        for low, high in region:
            share = [Fraction(float(s)) for s in draw.choice([0.0, 1.0, draw.random()], len(low))]
            at = np.array([a + s * (b - a) for a, b, s in zip(low, high, share, strict=True)])
            point.append((at, at))
        engine = Engine(network, point, {})
        for at, step in enumerate(network.steps):
            if step.parts or step.source >= 0:
                engine.set(at, *engine.forward(at))
        low, high = engine.ends[network.output]
        rows = np.where(matrix > 0, matrix * high, matrix * low).sum(1) + offset
        if not all(any(rows[row] > 0 for row in clause) for clause in document["spec"]["clauses"]):
            return False
    return True


SECTIONS = ("program", "region", "spec", "proof", "tensors")


@pytest.mark.parametrize("section", SECTIONS)
def test_altered_certificates_are_rejected_or_true(
    made: tuple[nn.Module, Certificate], section: str
) -> None:
    """Without a new seal every change is rejected. With one: rejected, or the changed claim
    holds (a slope, a smaller region, a spec with more room still prove what they say)."""
    document = made[1].document
    rng, draw = random.Random(section), np.random.default_rng(0)
    places = list(_leaves(document[section], (section,)))
    accepted = rejected = 0
    for path in rng.sample(places, min(len(places), 60)):
        value = document
        for key in path:
            value = value[key]
        changed = _put(document, path, _altered(value, rng))
        if changed == document:
            continue
        stale = {**changed, "seal": checker.seal(document)}
        assert "altered" in checker.check_document(stale, made[1].tensors).reason
        forged = {**changed, "seal": checker.seal(changed)}
        try:
            # As when read from a file: hashes first.
            for name, entry in forged["tensors"].items():
                tensor = made[1].tensors[name]
                if checker.fingerprint(tensor.reshape(entry["shape"])) != entry["sha256"]:
                    raise Refused("hash")
        except (Refused, KeyError, ValueError):
            rejected += 1
            continue
        if checker.check_document(forged, made[1].tensors, exact=False):
            accepted += 1
            if section != "proof":
                assert _still_true(forged, made[1].tensors, draw), path
        else:
            rejected += 1
    assert rejected > 0
    assert section != "tensors" or accepted <= len(document["tensors"]) * 2


def test_altered_weights_are_rejected_or_true(made: tuple[nn.Module, Certificate]) -> None:
    """With new hashes and a new seal another network is claimed: proved only if that is true."""
    document, rng, draw = made[1].document, random.Random(0), np.random.default_rng(0)
    floats = [name for name, t in made[1].tensors.items() if t.dtype.kind == "f"]
    outcomes = set()
    for index in range(12):
        name = floats[index % len(floats)]
        tensors = {key: tensor.copy() for key, tensor in made[1].tensors.items()}
        at = rng.randrange(tensors[name].size)
        tensors[name].reshape(-1)[at] += rng.choice((-100.0, -1e-3, 1e-3, 1.0, 100.0))
        entry = {**document["tensors"][name], "sha256": checker.fingerprint(tensors[name])}
        forged = {**document, "tensors": {**document["tensors"], name: entry}}
        stale = {**forged, "seal": checker.seal(document)}
        assert "altered" in checker.check_document(stale, tensors).reason
        forged["seal"] = checker.seal(forged)
        found = checker.check_document(forged, tensors, exact=False)
        assert not found or _still_true(forged, tensors, draw), (name, at)
        outcomes.add(bool(found))
    assert outcomes == {True, False}


def test_bounds_that_do_not_follow_are_rejected(made: tuple[nn.Module, Certificate]) -> None:
    """Every recorded bound, pulled inside what the region reaches, is noticed."""
    document = made[1].document
    if not document["proof"]["bounds"]:
        bounds = {"%" + document["program"]["nodes"][0]["name"]: None}
    else:
        bounds = document["proof"]["bounds"]
    network = Network(document["program"], made[1].tensors, Arithmetic(exact=False))
    region = document["region"][document["program"]["inputs"][0]["name"]]
    ends = tuple(np.array([float.fromhex(t) for t in region[k]]) for k in ("lower", "upper"))
    middle = (ends[0] + ends[1]) / 2
    engine = Engine(network, [(middle, middle)], {})
    for at, step in enumerate(network.steps):
        if step.parts or step.source >= 0:
            engine.set(at, *engine.forward(at))
    for name in bounds:
        low, high = engine.ends[network.position[name]]
        for element in range(0, len(low), 3):
            # Above a value that the network has at the middle of the region.
            tight = high + 1e-6 * (np.arange(len(high)) == element)
            wide = [float(v).hex() for v in high + 1e3]
            claim = {"lower": [float(v).hex() for v in np.where(tight > high, tight, low - 1e3)],
                     "upper": wide}  # fmt: skip
            changed = _put(document, ("proof", "bounds", name), claim)
            changed["seal"] = checker.seal(changed)
            found = checker.check_document(changed, made[1].tensors)
            assert not found and "does not follow" in found.reason


def test_slopes_of_rows_and_intermediate_bounds_are_recorded() -> None:
    """A property that needs crown and searched slopes; the record shows both."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)
    ).eval()
    x = torch.rand(1, 6)
    region = bg.LinfBall(x, 0.15)
    label = int(model(x).argmax())
    found = set()
    with torch.no_grad():
        crown = bg.bound(model, method="crown", spec=bg.Margin(3))(
            region, labels=torch.tensor([label])
        )
    lower = crown.lower[0][[j for j in range(3) if j != label]].min()
    for shift in (1.0, 0.05, 1e-4, -0.01, -0.02):
        # Rows moved so that the lowest margin by crown is `shift`.
        rows = [Constraint({label: 1.0, j: -1.0}, float(shift - lower)) for j in range(3)
                if j != label]  # fmt: skip
        verdict = bg.verify(model, region, All(*rows), certificate=True, attack=None)
        if isinstance(verdict, bg.Proved) and verdict.certificate is not None:
            proof = verdict.certificate.document["proof"]
            found.add(proof["found_by"])
            assert verdict.certificate.check()
            assert bool(proof["row_slopes"]) == (proof["found_by"] == "alpha-crown")
    assert found >= {"crown", "alpha-crown"}


def test_disjunctions_keep_their_clauses() -> None:
    model = nn.Linear(2, 2).eval()
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
        model.bias.zero_()
    region = bg.Box(torch.tensor([[0.5, -1.0]]), torch.tensor([[1.0, 1.0]]))
    spec = All(AnyOf(Constraint({1: 1.0}), Constraint({0: 1.0})), Constraint({0: 2.0}, -0.5))
    verdict = bg.verify(model, region, spec, certificate=True)
    assert isinstance(verdict, bg.Proved) and verdict.certificate is not None
    document = verdict.certificate.document
    assert [len(clause) for clause in document["spec"]["clauses"]] == [2, 1]
    # The row that does not hold cannot stand for its clause.
    row = next(r for r in document["spec"]["clauses"][0] if r != document["proof"]["witnesses"][0])
    changed = _put(document, ("proof", "witnesses", 0), row)
    changed["seal"] = checker.seal(changed)
    assert not checker.check_document(changed, verdict.certificate.tensors)


def test_margins_below_rounding_are_settled_by_rationals() -> None:
    """f = (x·(1 + 2⁻²³) − x)·2⁻⁴⁰ + 1e-30: float64 bounds cannot tell, rationals can."""
    program = {
        "inputs": [{"name": "x", "shape": [1, 1]}],
        "nodes": [
            {"name": "a", "op": "linear", "inputs": ["%x", "@w"], "attrs": {}},
            {"name": "b", "op": "linear", "inputs": ["%a", "@v", "@c"], "attrs": {}},
        ],
        "output": "%b",
    }
    tensors = {"w": np.array([[1.0], [1.0]]), "v": np.array([[1.0, -1.0]]), "c": np.array([1e-30])}
    document: dict[str, Any] = {
        "format": checker.FORMAT,
        "program": program,
        "tensors": {},
        "region": {"x": {"lower": [(-1.0).hex()], "upper": [(1e10).hex()]}},
        "spec": {"matrix": [[(1.0).hex()]], "offset": [(0.0).hex()], "clauses": [[0]]},
        "proof": {"witnesses": [0], "bounds": {}, "slopes": {}, "row_slopes": {}},
    }
    document["seal"] = checker.seal(document)
    assert not checker.check_document(document, tensors, exact=False)
    found = checker.check_document(document, tensors)
    assert found and found.arithmetic == "rational" and found.margins == (1e-30,)
    document["spec"]["offset"] = [(-1e-30).hex()]
    document["seal"] = checker.seal(document)
    assert not checker.check_document(document, tensors)


class _Gelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x) * 0.0 + x + 2.0


def test_an_op_unknown_to_the_checker_gives_no_certificate() -> None:
    verdict = bg.verify(
        _Gelu().eval(),
        bg.LinfBall(torch.zeros(1, 2), 0.1),
        bg.LinearSpec(torch.eye(2)),
        certificate=True,
    )
    assert isinstance(verdict, bg.Proved)
    assert verdict.certificate is None
    assert verdict.uncertified is not None and "exp" in verdict.uncertified


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "boundgraph certificate 1"}', "NaN"])
def test_files_that_are_no_certificates_are_rejected(text: str, tmp_path: Path) -> None:
    path = tmp_path / "proof.json"
    path.write_text(text)
    assert not check_certificate(path)
    assert not checker.check_file(path)


def test_inputs_that_are_not_perturbed_are_part_of_the_record() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x * y + y

    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0]])
    model = Two().eval()
    spec = bg.LinearSpec(torch.eye(2))
    verdict = bg.verify(model, [bg.LinfBall(x, 0.1), y], spec, certificate=True)
    assert isinstance(verdict, bg.Proved) and verdict.certificate is not None
    assert "input.y" in verdict.certificate.tensors
    found = check_certificate(verdict.certificate, model)
    assert found, found.reason


def test_the_region_contains_the_ball() -> None:
    """Ends are rounded outwards: center ± eps in reals lies within."""
    x, eps = torch.rand(1, 1, 3, 3), 0.001
    certificate = _proved(_model(), x, eps).certificate
    assert certificate is not None
    ends = next(iter(certificate.document["region"].values()))
    for low, high, c in zip(ends["lower"], ends["upper"], x.flatten().tolist(), strict=True):
        assert Fraction(float.fromhex(low)) <= Fraction(c) - Fraction(eps)
        assert Fraction(float.fromhex(high)) >= Fraction(c) + Fraction(eps)
