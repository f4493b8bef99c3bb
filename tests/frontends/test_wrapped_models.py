"""Models inside wrappers, models that are no modules, and failures that stay quiet."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.errors import CaptureError, ConfigError, MemoryBudgetError, RegionError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def region() -> bg.LinfBall:
    return bg.LinfBall(torch.rand(5, 4, generator=torch.Generator().manual_seed(0)), 0.1)


class Inner(nn.Module):
    """Holds a compiled module and a compiled function."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = torch.compile(model)
        self.double = torch.compile(lambda x: 2.0 * x)

    def forward(self, x: Tensor) -> Tensor:
        return self.double(self.inner(x))


@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_compiled_and_parallel_models_have_the_bounds_of_the_plain_one(method: str) -> None:
    model = network()
    plain = bg.bound(model, method=method)(region())
    for wrapped, factor in (
        (torch.compile(model), 1.0),
        (nn.DataParallel(model), 1.0),
        (Inner(model), 2.0),
    ):
        bounds = bg.bound(wrapped, method=method)(region())
        torch.testing.assert_close(bounds.lower, plain.lower * factor)
        torch.testing.assert_close(bounds.upper, plain.upper * factor)


def test_a_model_without_code_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(network(), torch.rand(5, 4))
    with pytest.raises(ConfigError, match=r"ScriptModule.*pass the nn\.Module"):
        bg.bound(scripted)(region())
    with pytest.raises(ConfigError, match="got function"):
        bg.bound(lambda x: x)


def test_dtypes_that_differ_are_named_at_compilation() -> None:
    with pytest.raises(CaptureError, match=r"`linear` does not accept .*f64.*f32.*dtypes differ"):
        bg.bound(network())(bg.LinfBall(torch.rand(5, 4).double(), 0.1))


def test_dtypes_that_differ_are_named_at_a_call() -> None:
    program = bg.compile(network(), region())
    with pytest.raises(RegionError, match=r"is f64, the program takes .*f32"):
        program(bg.LinfBall(torch.rand(5, 4).double(), 0.1))


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight


def test_an_output_that_no_input_reaches_is_its_own_bound() -> None:
    bounds = bg.bound(Constant())(region())
    torch.testing.assert_close(bounds.lower, torch.arange(3.0))
    torch.testing.assert_close(bounds.upper, torch.arange(3.0))


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize("model", [Branch(), nn.Sequential(nn.Linear(3, 2))])
def test_a_capture_that_fails_prints_nothing(
    model: nn.Module, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CaptureError):
        bg.bound(model)(region())
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_losses_bound_the_model_inside(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, x, y = network(), torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])
    plain = bg.training.MixedLoss(model, eps=0.1)(x, y)
    wrapped = bg.training.MixedLoss(wrap(model), eps=0.1)(x, y)
    torch.testing.assert_close(wrapped, plain)


def test_alpha_crown_of_one_sample_keeps_its_budget() -> None:
    one = bg.LinfBall(torch.rand(1, 4), 0.1)
    program = bg.compile(network(), one, method="alpha-crown", max_memory=10)
    with pytest.raises(MemoryBudgetError):
        program(one)


def test_a_module_of_torch_can_be_frozen() -> None:
    with bg.freeze(nn.Sequential(nn.Linear(2, 2))) as registration:
        assert registration.name == "Sequential"
