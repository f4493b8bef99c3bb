import itertools
import math

import pytest

from boundgraph.errors import ConfigError
from boundgraph.training.schedules import (
    SCHEDULES,
    Constant,
    Cosine,
    Linear,
    Piecewise,
    Smoothed,
    Steps,
    schedule_from_dict,
)

EXAMPLES = [
    Constant(0.3),
    Linear(0.0, 1.0, start=0.1, end=0.5),
    Smoothed(0.0, 2.0, end=0.8, power=4.0),
    Piecewise(((0.0, 1.0), (0.5, 0.2), (1.0, 0.0))),
    Cosine(0.01, warmup=0.1),
    Steps(0.1),
]


def test_linear_holds_its_ends_and_is_straight_between():
    ramp = Linear(0.0, 2.0, start=0.25, end=0.75)
    assert [ramp.value(s, 100) for s in (0, 25, 50, 75, 99, 500)] == [0, 0, 1, 2, 2, 2]


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_smoothed_is_increasing_and_has_no_kink(power):
    ramp = Smoothed(0.0, 1.0, start=0.2, end=0.9, middle=0.3, power=power)
    total = 2000
    values = [ramp.value(s, total) for s in range(total + 1)]
    moves = [b - a for a, b in itertools.pairwise(values)]
    assert values[0] == 0 and values[-1] == pytest.approx(1.0)
    assert min(moves) >= -1e-12
    if power > 1:
        rising = itertools.pairwise(moves[: int(0.9 * total)])
        assert max(abs(b - a) for a, b in rising) < 3e-5


def test_smoothed_with_power_four_is_the_schedule_of_auto_lirpa():
    """Its formula, written out for a ramp over steps 0 to 1000 with the middle at 250."""
    slope = 1.0 / ((1000 - 250) * 4 * 250**3 + 250 * 250**3)
    middle = slope * 250**4
    ramp = Smoothed(0.0, 1.0, middle=0.25, power=4.0)
    for step in (0, 100, 249, 250, 600, 1000):
        expected = (
            slope * step**4 if step < 250 else middle + (1 - middle) * (step - 250) / (1000 - 250)
        )
        assert ramp.value(step, 1000) == pytest.approx(expected)


def test_piecewise_interpolates_and_jumps():
    schedule = Piecewise(((0.2, 1.0), (0.4, 3.0), (0.4, 0.0), (0.8, 4.0)))
    assert schedule.at(0.0) == 1.0
    assert schedule.at(0.3) == pytest.approx(2.0)
    assert schedule.at(0.4) == 0.0
    assert schedule.at(0.6) == pytest.approx(2.0)
    assert schedule.at(1.0) == 4.0


def test_cosine_warms_up_holds_and_decays_to_the_final_value():
    schedule = Cosine(1.0, final=0.1, warmup=0.1, hold=0.5)
    assert schedule.at(0.0) == 0.0
    assert schedule.at(0.05) == pytest.approx(0.5)
    assert schedule.at(0.3) == 1.0
    assert schedule.at(0.75) == pytest.approx(0.55)
    assert schedule.at(1.0) == pytest.approx(0.1)


def test_steps_multiply_at_each_fraction():
    schedule = Steps(1.0, factor=0.5, at_fractions=(0.5, 0.9))
    assert [schedule.value(s, 10) for s in (0, 4, 5, 8, 9)] == [1.0, 1.0, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("schedule", EXAMPLES, ids=lambda s: s.kind)
def test_a_schedule_survives_a_round_trip_through_plain_data(schedule):
    assert schedule_from_dict(schedule.to_dict()) == schedule
    assert set(SCHEDULES) == {example.kind for example in EXAMPLES}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constant(math.nan),
        lambda: Constant("a lot"),
        lambda: Constant(True),
        lambda: Linear(0.0, 1.0, start=0.5, end=0.5),
        lambda: Linear(0.0, 1.0, end=1.5),
        lambda: Linear(0.0, math.inf),
        lambda: Smoothed(0.0, 1.0, middle=0.0),
        lambda: Smoothed(0.0, 1.0, power=0.5),
        lambda: Piecewise(()),
        lambda: Piecewise(((0.5, 1.0), (0.4, 1.0))),
        lambda: Piecewise(((0.5, 1.0, 2.0),)),
        lambda: Cosine(1.0, warmup=1.0),
        lambda: Cosine(1.0, warmup=0.4, hold=0.2),
        lambda: Steps(1.0, factor=0.0),
        lambda: schedule_from_dict({"kind": "zigzag"}),
        lambda: schedule_from_dict({"kind": "constant", "height": 1}),
        lambda: Constant(1.0).value(0, 0),
        lambda: Constant(1.0).value(-1, 10),
    ],
)
def test_bad_options_are_refused_when_given(make):
    with pytest.raises(ConfigError):
        make()
