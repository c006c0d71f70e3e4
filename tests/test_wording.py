"""Numbers as text: by hand, with the signs and dashes that readers see."""

import math

import pytest

from g2sf_lib.chapters.wording import p_cell, p_text, signed, with_error, with_spread


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0124, "+0.012"), (-0.0124, "−0.012"), (0.0004, "0.000"), (-0.0004, "0.000")],
)
def test_signs_are_true_and_zero_has_none(value, text):
    assert signed(value) == text


def test_spreads_and_errors_stand_behind_their_value():
    assert with_spread(0.5, 0.0123) == "0.500 ± 0.012"
    assert "nan" not in with_spread(0.5, math.nan)
    assert with_error(-0.5, 0.0123) == "−0.500 ± 0.012"
    assert "nan" not in with_error(-0.5, math.nan)


@pytest.mark.parametrize("told", [p_text, p_cell])
def test_small_p_values_are_bounds_and_unknown_ones_are_no_number(told):
    assert "< 0.001" in told(1e-5)
    assert "0.25" in told(0.25)
    assert "nan" not in told(math.nan)
