"""Intervals of shares."""

from hypothesis import given, settings
from hypothesis import strategies as st

from audit.metrics.intervals import wilson_interval


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 500), share=st.floats(0, 1))
def test_wilson_interval_holds_the_share(n: int, share: float) -> None:
    k = round(share * n)
    interval = wilson_interval(k, n)
    assert interval.n == n
    assert 0 <= interval.low <= interval.value + 1e-12
    assert interval.value <= interval.high + 1e-12 <= 1 + 2e-12


def test_wilson_interval_of_nothing_has_no_value() -> None:
    assert wilson_interval(0, 0).value is None
