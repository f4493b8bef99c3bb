import math

import pytest

from boundgraph.errors import ConfigError, NonFiniteError
from boundgraph.training.controllers import CONTROLLERS, make_controller

METRICS = {"clean_accuracy": 0.95, "clean_loss": 0.5, "bound_loss": 2.0}


def test_constant_never_moves():
    controller = make_controller("constant", alpha=0.4)
    assert [controller.update(METRICS) for _ in range(3)] == [0.4] * 3


def test_ramp_waits_then_rises_to_its_final_value():
    controller = make_controller("ramp", alpha=0.0, final=0.8, epochs=2, delay=1)
    assert [controller.update({}) for _ in range(5)] == pytest.approx([0.0, 0.4, 0.8, 0.8, 0.8])


def test_accuracy_floor_rises_above_and_falls_below_within_its_range():
    controller = make_controller(
        "accuracy-floor", alpha=0.5, floor=0.9, rise=0.1, fall=0.3, low=0.2, high=0.65
    )
    good, bad = {"clean_accuracy": 0.9}, {"clean_accuracy": 0.89}
    moves = [controller.update(m) for m in (good, good, bad, bad, good)]
    assert moves == pytest.approx([0.6, 0.65, 0.35, 0.2, 0.3])


def test_accuracy_floor_waits_for_its_delay():
    controller = make_controller("accuracy-floor", alpha=0.5, floor=0.9, delay=2)
    moves = [controller.update({"clean_accuracy": 0.1}) for _ in range(3)]
    assert moves[:2] == [0.5, 0.5] and moves[2] < 0.5


def test_balanced_reaches_the_share_asked_for():
    controller = make_controller("balanced", alpha=0.5, share=0.6, low=0.0, high=1.0)
    for _ in range(60):
        alpha = controller.update(METRICS)
    clean, bound = (1 - alpha) * METRICS["clean_loss"], alpha * METRICS["bound_loss"]
    assert bound / (clean + bound) == pytest.approx(0.6)


def test_balanced_prefers_gradient_norms_where_given():
    controller = make_controller("balanced", share=0.5, speed=1.0)
    controller.update({**METRICS, "clean_grad_norm": 1.0, "bound_grad_norm": 1.0})
    assert controller.alpha == pytest.approx(0.5)


def test_balanced_keeps_alpha_where_both_losses_vanish():
    controller = make_controller("balanced", alpha=0.3)
    assert controller.update({"clean_loss": 0.0, "bound_loss": 0.0}) == 0.3


@pytest.mark.parametrize("name", sorted(CONTROLLERS))
def test_a_restored_controller_continues_exactly(name):
    unbroken, first, second = (make_controller(name, alpha=0.5) for _ in range(3))
    expected = [unbroken.update(METRICS) for _ in range(6)]
    found = [first.update(METRICS) for _ in range(3)]
    second.load_state_dict(first.state_dict())
    assert second.alpha == first.alpha
    assert found + [second.update(METRICS) for _ in range(3)] == expected


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("constant", {"alpha": 1.5}),
        ("constant", {"alpha": math.nan}),
        ("constant", {"speed": 2}),
        ("ramp", {"epochs": 0}),
        ("ramp", {"final": -0.1}),
        ("accuracy-floor", {"floor": 97}),
        ("accuracy-floor", {"alpha": 0.05, "low": 0.1}),
        ("balanced", {"share": 2}),
        ("mixtrain", {}),
    ],
)
def test_bad_options_are_refused(name, options):
    with pytest.raises(ConfigError):
        make_controller(name, **options)


def test_a_missing_or_non_finite_metric_is_an_error():
    controller = make_controller("accuracy-floor")
    with pytest.raises(ConfigError, match="clean_accuracy"):
        controller.update({"loss": 1.0})
    with pytest.raises(NonFiniteError, match="diverged"):
        controller.update({"clean_accuracy": math.nan})


def test_the_state_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match="kind"):
        make_controller("ramp").load_state_dict(make_controller("constant", alpha=0.1).state_dict())
