"""Clean, attacked and certified accuracy, and the errors around them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from boundgraph.accuracy import Evaluation
from boundgraph.domains.interval import Interval
from boundgraph.errors import (
    ConfigError,
    DataError,
    NonFiniteError,
    RegionError,
    SoundnessError,
    SpecError,
    UnsupportedError,
)
from boundgraph.evaluation import evaluate, proves
from boundgraph.runtime.memory import peak_bytes
from boundgraph.runtime.module import BoundProgram

FAST = ["ibp", "symbolic", "mix", "crown-ibp", "crown", ("ibp", "crown-ibp", "mix")]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)
    ).eval()


def samples(model: nn.Module, count: int = 24, wrong: int = 3) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(7))
    y = model(x).argmax(1)
    y[:wrong] = (y[:wrong] + 1) % 4
    return x, y


def test_a_linear_model_is_decided_exactly() -> None:
    """With two classes both the attack and the bounds are exact, so they must agree."""
    torch.manual_seed(0)
    model = nn.Linear(5, 2).double()
    x = torch.rand(200, 5, dtype=torch.float64)
    y = model(x).argmax(1)
    eps = 0.2
    result = evaluate(model, (x, y), eps)
    slope = model.weight[y] - model.weight[1 - y]
    best = torch.where(slope > 0, (x - eps).clamp(0, 1), (x + eps).clamp(0, 1))
    expected = model(best).argmax(1) == y
    assert 0 < result.certified_correct < 200
    assert result.certified_correct == result.attacked_correct == int(expected.sum())
    assert torch.equal(result.masks.certified, expected)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 1000),
    eps=st.floats(0, 0.3, allow_subnormal=False),
    method=st.sampled_from(FAST),
)
def test_certified_never_exceeds_attacked_never_exceeds_clean(
    seed: int, eps: float, method: Any
) -> None:
    model = network(seed)
    result = evaluate(model, samples(model), eps, method=method, attack_steps=5)
    masks = result.masks
    assert (masks.certified <= masks.attacked).all() and (masks.attacked <= masks.clean).all()
    assert result.clean_correct == 21 and result.n == 24
    assert result.certified <= result.attacked <= result.clean


def test_a_cascade_proves_what_any_of_its_methods_proves() -> None:
    model = network()
    data = samples(model, 64)
    alone = {m: evaluate(model, data, 0.05, method=m).masks.certified for m in ("ibp", "symbolic")}
    both = evaluate(model, data, 0.05, method=("ibp", "symbolic"))
    assert both.method == "ibp+symbolic"
    assert torch.equal(both.masks.certified, alone["ibp"] | alone["symbolic"])
    assert alone["symbolic"].sum() > alone["ibp"].sum()


def test_later_methods_see_only_what_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    run = BoundProgram.run

    def spy(self: BoundProgram, inputs: Any, labels: Any = None, clean: Any = ()) -> Any:
        seen.append((self.method, len(labels)))
        return run(self, inputs, labels, clean)

    monkeypatch.setattr(BoundProgram, "run", spy)
    model = network()
    data = samples(model, 64)
    result = evaluate(model, data, 0.05, method=("ibp", "symbolic"))
    by_ibp = evaluate(model, data, 0.05, method="ibp").certified_correct
    counts = {m: sum(n for name, n in seen[:-1] if name == m) for m in ("ibp", "symbolic")}
    assert counts == {"ibp": 64, "symbolic": result.clean_correct - by_ibp}


@pytest.mark.parametrize("step", ["tuple", "loader", "generator", "list"])
def test_every_form_of_data_gives_the_same_verdicts(step: str) -> None:
    model = network()
    x, y = samples(model)

    def generate() -> Iterator[tuple[Tensor, Tensor]]:
        yield x[:5], y[:5]
        yield x[5:5], y[5:5]
        yield x[5:], y[5:]

    data = {
        "tuple": (x, y),
        "loader": DataLoader(TensorDataset(x, y), batch_size=7),
        "generator": generate(),
        "list": [[x[:5], y[:5]], (x[5:], y[5:])],
    }[step]
    whole = evaluate(model, (x, y), 0.05, attack_steps=40, restarts=2)
    result = evaluate(model, data, 0.05, attack_steps=40, restarts=2, batch_size=5)
    assert torch.equal(result.masks.certified, whole.masks.certified)
    assert torch.equal(result.masks.clean, whole.masks.clean)


def test_samples_in_small_chunks_give_the_same_verdicts() -> None:
    model = network()
    data = samples(model)
    whole = evaluate(model, data, 0.05, method="mix")
    chunked = evaluate(model, data, 0.05, method="mix", max_memory=60_000)
    assert torch.equal(whole.masks.certified, chunked.masks.certified)


def test_limit_and_progress() -> None:
    model = network()
    seen: list[tuple[int, int | None]] = []
    result = evaluate(
        model,
        samples(model),
        0.05,
        limit=10,
        batch_size=4,
        progress=lambda so_far, total: seen.append((so_far.n, total)),
    )
    assert result.n == 10
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_progress_line_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    evaluate(model, samples(model), 0.05, progress=True, attack_steps=0)
    captured = capsys.readouterr()
    assert "evaluated 24/24" in captured.err and captured.out == ""


def test_results_are_plain_numbers() -> None:
    model = network()
    result = evaluate(model, samples(model), 0.05, attack_steps=3, restarts=2)
    plain = json.loads(json.dumps(result.as_dict()))
    assert {"clean", "attacked", "certified", "n", "eps", "method", "seconds"} <= plain.keys()
    assert plain["clean"] == result.clean_correct / 24
    assert plain["attack"] == "PGD of 3 steps from 2 starts"
    assert result.counts["certified_correct"] == plain["certified_correct"]
    assert "certified" in str(result) and "24" in str(result)


def test_without_attack_attacked_is_clean() -> None:
    model = network()
    result = evaluate(model, samples(model), 0.3, attack_steps=0)
    assert result.attacked_correct == result.clean_correct and result.attack == "no attack"


def test_the_model_is_left_as_it_was() -> None:
    model = network()
    data = samples(model)
    model(data[0]).sum().backward()
    before = copy.deepcopy(model.state_dict())
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    evaluate(model, data, 0.05, method=("ibp", "mix"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, grads[name]) for name, p in model.named_parameters())
    assert modes == [module.training for module in model.modules()]


def tighten(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Plant a fault: every bound program returns `change(lower, upper)`."""
    run = BoundProgram.run

    def faulty(self: BoundProgram, *args: Any, **kwargs: Any) -> Any:
        bounds = run(self, *args, **kwargs)
        return Interval(*change(bounds.lower, bounds.upper))

    monkeypatch.setattr(BoundProgram, "run", faulty)


def test_a_planted_fault_is_found_by_the_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    tighten(monkeypatch, lambda lower, upper: ((lower + upper) / 2, upper))
    model = network()
    x, y = samples(model, wrong=0)
    x, y = torch.cat([x[:1] * 0 + 0.5, x]), torch.cat([model(x[:1] * 0 + 0.5).argmax(1), y])
    with pytest.raises(SoundnessError, match=r"sample \d+ .*bug in BoundGraph"):
        evaluate(model, (x, y), 0.5)


def test_a_certificate_for_a_wrong_answer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    tighten(monkeypatch, lambda lower, upper: (lower.abs() + 0.25, upper))
    model = network()
    x, y = samples(model, wrong=0)
    y[13] = (y[13] + 1) % 4
    with pytest.raises(
        SoundnessError, match=r"sample 13 .*at least 0\.\d+; but the model reaches -"
    ):
        evaluate(model, (x, y), 0.01, batch_size=8, attack_steps=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bounds_of_nan_or_infinity_certify_nothing(
    monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    tighten(monkeypatch, lambda lower, upper: (lower * 0 + value, upper))
    model = network()
    result = evaluate(model, samples(model), 1e-6)
    assert result.certified_correct == 0 and result.attacked_correct == 21


def test_one_nan_among_good_rows_certifies_nothing() -> None:
    rows = torch.tensor([[1.0, math.nan, 2.0], [1.0, 2.0, 3.0], [1.0, math.inf, 3.0]])
    assert proves(rows.amin(1)).tolist() == [False, True, True]
    assert proves(torch.tensor([math.inf, 0.0, -1.0])).tolist() == [False, False, False]


def test_ties_are_not_correct() -> None:
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    result = evaluate(model, (torch.rand(5, 3), torch.zeros(5, dtype=torch.long)), 0.1)
    assert (result.clean_correct, result.attacked_correct, result.certified_correct) == (0, 0, 0)


def bad_calls() -> dict[str, tuple[type[Exception], str, dict[str, Any]]]:
    x, y = samples(network())
    nan = x.clone()
    nan[3, 0, 0, 0] = math.nan
    return {
        "empty tensors": (DataError, "no samples", {"data": (x[:0], y[:0])}),
        "empty loader": (DataError, "no samples", {"data": []}),
        "not pairs": (DataError, "pairs", {"data": [x]}),
        "triples": (DataError, "pairs", {"data": [(x, y, y)]}),
        "not data": (DataError, "tensors or yield", {"data": 3}),
        "one tensor": (DataError, "tensors or yield", {"data": x}),
        "lengths": (DataError, "one label", {"data": (x, y[:3])}),
        "bytes": (DataError, "uint8", {"data": (x.byte(), y)}),
        "dtype": (DataError, "float64", {"data": (x.double(), y)}),
        "labels": (SpecError, "out of range", {"data": (x, y + 4)}),
        "negative labels": (SpecError, "out of range", {"data": (x, y - 9)}),
        "float labels": (SpecError, "integer", {"data": (x, y.float())}),
        "nan": (NonFiniteError, "NaN", {"data": (nan, y)}),
        "clip": (RegionError, "clip", {"data": (x * 255, y)}),
        "eps": (RegionError, "eps", {"eps": -0.1}),
        "eps nan": (RegionError, "eps", {"eps": math.nan}),
        "eps tensor": (ConfigError, "eps", {"eps": torch.ones(2)}),
        "method": (ConfigError, "unknown method 'magic'", {"method": "magic"}),
        "methods": (ConfigError, "method", {"method": ()}),
        "steps": (ConfigError, "attack_steps", {"attack_steps": -1}),
        "restarts": (ConfigError, "restarts", {"restarts": 0}),
        "batch size": (ConfigError, "batch_size", {"batch_size": 0}),
        "limit": (ConfigError, "limit", {"limit": 0}),
        "memory": (ConfigError, "max_memory", {"max_memory": 100, "method": "symbolic"}),
    }


@pytest.mark.parametrize("case", bad_calls())
def test_bad_arguments_are_named(case: str) -> None:
    error, text, options = bad_calls()[case]
    model = network()
    with pytest.raises(error, match=text):
        evaluate(model, **{"data": samples(model), "eps": 0.1, **options})


def test_weights_of_nan_are_refused_and_named() -> None:
    model = network()
    data = samples(model)
    with torch.no_grad():
        model[4].bias[1] = math.nan
        model[1].running_var[0] = math.inf
    with pytest.raises(NonFiniteError, match=r"4\.bias, 1\.running_var"):
        evaluate(model, data, 0.1)


def test_training_mode_is_refused() -> None:
    model = network()
    data = samples(model)
    model.train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=r"1 \(BatchNorm2d\).*model\.eval\(\)"):
        evaluate(model, data, 0.1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_dropout_spelled_as_a_function_is_refused_by_the_compiler() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            hidden = nn.functional.dropout(x.flatten(1), 0.5, self.training)
            return self.layer(hidden)

    model = Net().train()
    with pytest.raises(UnsupportedError, match="dropout"):
        evaluate(model, samples(network()), 0.1)


def test_reduced_precision_is_refused() -> None:
    model = network()
    data = samples(model)
    with torch.autocast("cpu"), pytest.raises(ConfigError, match="autocast"):
        evaluate(model, data, 0.1)
    with pytest.raises(ConfigError, match="half precision"):
        evaluate(copy.deepcopy(model).half(), data, 0.1)
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(ConfigError, match="fp32_precision"):
            evaluate(model, data, 0.1)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert isinstance(evaluate(model, data, 0.1), Evaluation)


def test_memory_estimate_follows_the_types() -> None:
    from boundgraph.compiler import compile
    from boundgraph.domains.regions import LinfBall

    model = nn.Sequential(nn.Linear(10, 50), nn.ReLU(), nn.Linear(50, 3))
    region = LinfBall(torch.zeros(2, 10), 0.1)
    ibp = peak_bytes(compile(model, region).ir)
    symbolic = peak_bytes(compile(model, region, method="symbolic", keep_symbolic=True).ir)
    assert ibp < 50 * 4 * 20
    # relu: 60 symbols for 50 values is the largest form.
    assert 60 * 50 * 4 <= symbolic <= 60 * 50 * 4 * 5


def test_the_cascade_is_that_of_verify_and_spends_crown_on_hopeful_samples_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from boundgraph.domains.regions import LinfBall
    from boundgraph.domains.specs import Margin
    from boundgraph.options import CASCADE
    from boundgraph.verification.verify import verify

    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
    model.append(nn.Linear(16, 3)).double().eval()
    x = torch.rand(40, 4, dtype=torch.float64)
    y, eps = model(x).argmax(1), 0.08
    y[:3] = (y[:3] + 1) % 3
    asked: dict[str, int] = {}
    run = BoundProgram.run_within

    def spy(self: BoundProgram, inputs: Any, labels: Tensor, *rest: Any, **named: Any) -> Any:
        asked[self.method] = asked.get(self.method, 0) + len(labels)
        return run(self, inputs, labels, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(BoundProgram, "run_within", spy)
        found = evaluate(model, (x, y), eps, method="cascade", attack_steps=20)
    assert found.method == "+".join(CASCADE) and found.masks is not None
    assert asked["ibp"] == 40
    assert asked["crown"] <= int(found.masks.attacked.sum())
    for method in CASCADE:
        alone = evaluate(model, (x, y), eps, method=method, attack_steps=20)
        assert alone.masks is not None
        assert not bool((alone.masks.certified & ~found.masks.certified).any())
    verdicts = verify(model, LinfBall(x, eps, clip=(0.0, 1.0)), Margin(3), labels=y, timeout=20)
    assert isinstance(verdicts, list)
    proved = torch.tensor([verdict.name == "proved" for verdict in verdicts])
    assert torch.equal(proved, found.masks.certified)
    refuted = torch.tensor([verdict.name == "refuted" for verdict in verdicts])
    assert not bool((refuted & found.masks.certified).any())
