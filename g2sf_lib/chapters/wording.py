"""Chapters 06 to 11: numbers as text, so that every table and sentence writes them alike."""

from __future__ import annotations

import pandas as pd

SMALLEST_P = 0.001  # no smaller p value is written


def signed(value: float, form: str = ".3f") -> str:
    """Return a difference with its sign, a true minus; what is zero as text has none.

    Args:
        value: the difference.
        form: how its size is written, as in a format string.
    """
    text = f"{value:+{form}}".replace("-", "−")
    return text if text.strip("+−0.%") else text[1:]


def with_spread(value: float, spread: float, form: str = ".3f", has_dash: bool = False) -> str:
    """Return a mean and its spread.

    Args:
        value: the mean.
        spread: NaN where it is unknown.
        form: how both are written, as in a format string.
        has_dash: whether a dash stands for an unknown spread; else nothing does.
    """
    return f"{value:{form}}{_plus_minus(spread, form, has_dash)}"


def with_error(difference: float, error: float, form: str = ".3f", has_dash: bool = False) -> str:
    """Return a difference with its sign, and its error; arguments as of `with_spread`."""
    return f"{signed(difference, form)}{_plus_minus(error, form, has_dash)}"


def _plus_minus(spread: float, form: str, has_dash: bool) -> str:
    """Return what follows a number."""
    if pd.isna(spread):
        return " ± –" if has_dash else ""
    return f" ± {spread:{form}}"


def p_text(p: float) -> str:
    """Return a p value in words; a single draw has none."""
    if pd.isna(p):
        return "a single draw, no p"
    return f"p < {SMALLEST_P:g}" if p < SMALLEST_P else f"p = {p:.2g}"


def p_cell(p: float) -> str:
    """Return a p value for a table; a dash where there is none."""
    if pd.isna(p):
        return "–"
    return f"< {SMALLEST_P:g}" if p < SMALLEST_P else f"{p:.2g}"
