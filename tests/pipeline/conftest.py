"""The small audit by hand that the tests of single stages are made on."""

import pytest
from support_small_audit import Small, small_audit


@pytest.fixture
def small() -> Small:
    return small_audit()
