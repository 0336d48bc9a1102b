"""Occupancies near one."""

import pytest

from matattn.structures.formats.occupancy import occupancy_remark, round_occupancy, site_species


@pytest.mark.parametrize(
    "value, own_error, expected",
    [
        (1, None, 1), (0.9999, None, 1), (0.999, None, 1), (1.001, None, 1),
        (0.9989, None, 0.9989), (1.0012, None, 1.0012), (0.998, 0.004, 1), (0.998, 0.0005, 0.998),
        (0.99, 0.005, 1), (0.985, 0.01, 1), (0.95, 0.5, 0.95), (0.5, None, 0.5),
    ],
)  # fmt: skip
def test_one_within_rounding_or_its_error(value, own_error, expected):
    assert round_occupancy(value, own_error) == expected


def test_parts_of_one_element_add_up():
    assert site_species([("Fe", 0.3333), ("Fe", 0.6666)]) == ({"Fe": 1}, pytest.approx(0.9999))
    assert site_species([("Fe", 0.1)] * 10) == ({"Fe": 1}, None)
    assert site_species([("Fe", 1), ("Ni", 0)]) == ({"Fe": 1}, None)
    assert site_species([("Fe", 0.9999), ("Ni", 0.0001)])[0] == {"Fe": 0.9999, "Ni": 0.0001}
    assert site_species([("O", 0.998)], own_error=0.004) == ({"O": 1}, 0.998)
    with pytest.raises(ValueError, match="nothing occupies"):
        site_species([("O", 0)])
    with pytest.raises(ValueError, match="O has the occupancy -1"):
        site_species([("O", -1)])


def test_many_sites_are_one_remark():
    text = occupancy_remark({f"O{n}": 0.999 for n in range(5)})
    assert text == "occupancies taken as 1: O0 (0.999), O1 (0.999), O2 (0.999) and 2 more"
