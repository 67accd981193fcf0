"""Intervals of proportions, against figures worked out by hand."""

import pytest

from lockstep.evaluation import proportions


def test_wilson_by_hand() -> None:
    assert proportions.wilson(1, 10, 0.95) == pytest.approx((0.0179, 0.4042), abs=1e-4)
    low, high = proportions.wilson(0, 30, 0.95)
    assert low == 0 and high == pytest.approx(proportions.unseen(30, 0.95))


def test_tango_leaves_0_out_where_mcnemars_score_test_rejects_it() -> None:
    assert proportions.tango(0, 0, 20, 0.95) == pytest.approx((-0.1611, 0.1611), abs=1e-4)
    low, high = proportions.tango(16, 4, 60, 0.95)  # (16 − 4)² / 20 = 7.2 > 3.84
    assert 0 < low < 0.2 < high
    low, _ = proportions.tango(12, 6, 60, 0.95)  # 36 / 18 = 2 < 3.84
    assert low < 0


def test_tango_mirrors_where_gains_and_losses_change_places() -> None:
    low, high = proportions.tango(16, 4, 60, 0.95)
    assert proportions.tango(4, 16, 60, 0.95) == pytest.approx((-high, -low))
