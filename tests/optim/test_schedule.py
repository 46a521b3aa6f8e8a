"""The cosine schedule: its landmarks, its shape, and its mean."""

from math import cos, pi

import pytest

from numllama.optim import cosine_schedule

RUN = dict(max_lr=3e-4, min_lr=3e-5, warmup_steps=10, total_steps=110)


def test_it_rises_in_a_straight_line():
    for step in range(11):
        assert cosine_schedule(step, **RUN) == pytest.approx(3e-4 * step / 10, rel=1e-15)


def test_its_landmarks():
    assert cosine_schedule(0, **RUN) == 0
    assert cosine_schedule(1, **RUN) == pytest.approx(3e-5, rel=1e-15)
    assert cosine_schedule(10, **RUN) == 3e-4
    assert cosine_schedule(60, **RUN) == pytest.approx((3e-4 + 3e-5) / 2, rel=1e-15)
    assert cosine_schedule(110, **RUN) == 3e-5


def test_it_falls_along_half_a_cosine():
    for step in range(10, 111):
        expected = 3e-5 + (3e-4 - 3e-5) * (1 + cos(pi * (step - 10) / 100)) / 2
        assert cosine_schedule(step, **RUN) == pytest.approx(expected, rel=1e-12)


def test_it_rises_then_falls():
    rates = [cosine_schedule(step, **RUN) for step in range(111)]
    assert rates[:11] == sorted(set(rates[:11]))
    assert rates[10:] == sorted(set(rates[10:]), reverse=True)


def test_the_fall_spends_half_its_height():
    fall = [cosine_schedule(step, **RUN) for step in range(10, 111)]
    trapezoids = sum(fall) - (fall[0] + fall[-1]) / 2
    assert trapezoids / 100 == pytest.approx((3e-4 + 3e-5) / 2, rel=1e-14)


def test_it_stays_at_the_minimum():
    assert {cosine_schedule(step, **RUN) for step in (110, 111, 1000, 10**9)} == {3e-5}


def test_without_warmup_it_starts_at_the_top():
    assert cosine_schedule(0, 1.0, 0.1, warmup_steps=0, total_steps=100) == 1.0
    assert cosine_schedule(1, 1.0, 0.1, warmup_steps=0, total_steps=100) < 1.0


def test_equal_rates_make_it_constant_after_the_warmup():
    assert {cosine_schedule(step, 0.5, 0.5, 3, 20) for step in range(3, 30)} == {0.5}


def test_a_run_that_is_all_warmup_needs_no_cosine():
    assert cosine_schedule(9, 1.0, 0.1, warmup_steps=10, total_steps=10) == 0.9
    assert cosine_schedule(10, 1.0, 0.1, warmup_steps=10, total_steps=10) == 0.1
