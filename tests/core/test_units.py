"""Properties by name, and their units."""

import pytest

from matattn.errors import DataError
from matattn.units import find_property


def test_unknown_property_needs_a_unit():
    with pytest.raises(DataError, match="'data.units={tc: UNIT}'"):
        find_property("tc")
    assert find_property("tc", {"tc": "K"}).unit == "K"
    assert find_property("k_vrh") is find_property("log10_bulk_modulus")
