import math

import pytest

from quantlab.stats.predict import predict_from_step


def test_the_figures_follow_from_the_step():
    figures = predict_from_step(step=0.5, rms=1.0, landmark=1.0)
    assert figures["max_err"] == 0.25
    assert figures["mae"] == 0.125
    assert figures["rmse"] == pytest.approx(0.5 / math.sqrt(12))
    assert figures["sqnr_db"] == pytest.approx(10 * math.log10(12 / 0.25))


def test_a_landmark_below_half_a_step_is_lost_whole():
    assert predict_from_step(step=0.5, rms=1.0, landmark=0.2)["landmark_rel_err"] == 1.0
    assert predict_from_step(step=0.5, rms=1.0, landmark=0.25)["landmark_rel_err"] == 0.5
    assert predict_from_step(step=0.5, rms=1.0, landmark=0.5)["landmark_rel_err"] == 0.25


def test_one_bit_more_is_six_db_more():
    coarse, fine = (predict_from_step(step, 1.0, 1.0)["sqnr_db"] for step in (0.5, 0.25))
    assert fine - coarse == pytest.approx(20 * math.log10(2))
