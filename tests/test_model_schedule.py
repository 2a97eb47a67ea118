"""The learning rate, every expected number written out."""

from __future__ import annotations

import pytest

from greyhound.model.schedule import PAPER_PHASES, Phase, lr_at, total_epochs


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [
        (0, 1e-1),
        (5, 5.5e-2),
        (10, 1e-2),
        (15, 5.5e-2),
        (20, 1e-1),
        (30, 1e-2),
        (40, 1e-1),
        (45, 5.5e-2),
        (47.5, 3.25e-2),
        (49.99, 1.009e-2),
        (50, 1e-2),
        (60, 1e-4),
        (70, 1e-2),
        (99.99, 1.0099e-4 + 8.91e-6),
        (100, 1e-4),
        (110, 1e-6),
        (150, 1e-6),
        (160, 1e-10),
        (165, 5.0005e-7),
        (200, 1e-10),
        (1000, 1e-10),
    ],
)
def test_the_papers_phases(epoch: float, rate: float) -> None:
    assert lr_at(PAPER_PHASES, epoch) == pytest.approx(rate, rel=1e-9)


def test_the_papers_numbers() -> None:
    assert total_epochs(PAPER_PHASES) == 200
    assert [(phase.epochs, phase.high, phase.low, phase.cycles) for phase in PAPER_PHASES] == [
        (50, 0.1, 0.01, 2.5),
        (50, 0.01, 0.0001, 2.5),
        (50, 0.0001, 0.000001, 2.5),
        (50, 0.000001, 0.0000000001, 2.5),
    ]


@pytest.mark.parametrize(
    ("epoch", "rate"), [(0, 1.0), (1, 0.8), (2.5, 0.5), (4, 0.2), (5, 0.0), (7, 0.0), (float("inf"), 0.0)]
)
def test_half_a_cycle_is_one_straight_decay(epoch: float, rate: float) -> None:
    assert lr_at([Phase(epochs=5, high=1.0, low=0.0, cycles=0.5)], epoch) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("epoch", "rate"), [(0, 0.0), (0.5, 0.45), (1, 0.8), (1.5, 1.05), (2, 1.2), (3, 0.8), (5, 0.0)]
)
def test_a_warm_up_multiplies(epoch: float, rate: float) -> None:
    assert lr_at([Phase(epochs=5, high=2.0, low=0.0, cycles=0.5, warm_up=2.0)], epoch) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("step", "warm_up", "rates"),
    [(0.25, 1.0, [0.5, 1.0, 1.5, 2.0, 2.0]), (1.0, 0.5, [2.0, 2.0]), (0.5, 0.0, [2.0, 2.0])],
)
def test_the_warm_ups_first_step_learns(step: float, warm_up: float, rates: list[float]) -> None:
    """Step k of n takes (k + 1) / n of the rate; where the warm-up is within a step, all of it."""
    phases = [Phase(epochs=4, high=2.0, low=2.0, warm_up=warm_up)]
    assert [lr_at(phases, k * step, step) for k in range(len(rates))] == rates


def test_the_papers_rates_do_not_depend_on_the_step() -> None:
    places = [k / 7 for k in range(1400)]
    assert [lr_at(PAPER_PHASES, place, 1 / 7) for place in places] == [
        lr_at(PAPER_PHASES, place) for place in places
    ]


def test_each_phase_warms_up_from_its_own_start() -> None:
    phases = [Phase(2, 1.0, 1.0), Phase(2, 4.0, 4.0, warm_up=1.0)]
    assert [lr_at(phases, epoch) for epoch in (0, 1.5, 2, 2.25, 3, 4)] == [1.0, 1.0, 0.0, 1.0, 4.0, 4.0]


def test_one_cycle_ends_where_it_began() -> None:
    phase = Phase(epochs=4, high=3.0, low=1.0, cycles=1.0)
    assert [lr_at([phase], epoch) for epoch in (0, 1, 2, 3, 4, 9)] == [3.0, 2.0, 1.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"epochs": 0}, "0 epochs"),
        ({"high": 1e-3, "low": 1e-2}, "high 0.001 to low 0.01"),
        ({"low": -1.0}, "low -1.0"),
        ({"high": float("inf")}, "high inf"),
        ({"high": float("nan")}, "high nan"),
        ({"cycles": 0.0}, "0.0 cycles"),
        ({"cycles": float("nan")}, "nan cycles"),
        ({"warm_up": -1.0}, "warm-up of -1.0"),
        ({"warm_up": 6.0}, "warm-up of 6.0 epochs; expected 0 to the phase's 5"),
    ],
)
def test_numbers_that_give_no_rate_are_refused(numbers: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        Phase(**({"epochs": 5, "high": 0.1, "low": 0.01} | numbers))  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("epoch", [-1, -0.001, float("nan")])
def test_there_is_no_rate_before_the_start(epoch: float) -> None:
    with pytest.raises(ValueError, match="expected 0 or later"):
        lr_at(PAPER_PHASES, epoch)


def test_there_is_no_rate_without_phases() -> None:
    with pytest.raises(ValueError, match="at least one"):
        lr_at((), 0)
    assert total_epochs(()) == 0
