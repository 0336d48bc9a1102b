"""Tests of matattn.structures.formats.space_groups."""

import numpy as np
import pytest

from matattn.structures.formats.space_groups import (
    SymmetryError,
    by_hall,
    by_number,
    by_symbol,
    parse_operations,
    product,
    settings,
)


def test_operations_as_people_write_them():
    forms = ["-x, y+1/2, -z", "-X,1/2+Y,-Z", "-x,+y+.5,-z", "- x , 0.5 + y, -z", "-x,y-1/2,-z"]
    for form in forms:
        operations = parse_operations(["x,y,z", form])
        assert operations.images(np.array([0.1, 0.2, 0.3]))[1] == pytest.approx([-0.1, 0.7, -0.3])


def test_decimals_are_thirds():
    operations = parse_operations(["x,y,z", "x+0.33,y+.6667,z+.667", "x+.667,y+.333,z+0.3333"])
    assert np.ptp(operations.images(np.zeros(3)) * 3 % 1) == 0


@pytest.mark.parametrize(
    "text",
    ["x;y;z", "x,y", "2*x,y,z", "x/2,y,z", "x,y,q", "", "x,,z", "1/0,y,z", "x y,z,1", "x,x,z"],
)
def test_what_is_no_operation_is_named(text):
    with pytest.raises(SymmetryError, match=f"'{text[:1]}.*no symmetry operation|'' is no"):
        parse_operations(["x,y,z", text])


def test_a_list_without_an_operation_is_no_group():
    with pytest.raises(SymmetryError, match="3 symmetry operations are no group"):
        parse_operations(["x,y,z", "-x,-y,z", "-x,y,-z"])


def test_product_of_centerings():
    group = product(parse_operations(["x,y,z", "-x,-y,-z"]),
                    parse_operations(["x,y,z", "x+1/2,y+1/2,z"]))  # fmt: skip
    assert len(group) == 4 and group.is_group() and group.number == 2


def test_every_setting_is_a_group_of_its_number():
    assert len(settings()) == 530
    for setting in settings():
        assert setting.operations.is_group()
        assert setting.operations.number == setting.number


def test_strain():
    group = by_symbol("P m -3 m")[0].operations
    assert group.strain(4 * np.eye(3)) == 0
    assert group.strain(np.diag([4, 4, 4.04])) == pytest.approx(0.0201, rel=0.03)


@pytest.mark.parametrize(
    "symbol, names",
    [
        ("P 21/n", ["P 1 21/n 1", "P 1 1 21/n", "P 21/n 1 1"]),
        ("P2(1)/c", ["P 1 21/c 1", "P 21/c 1 1"]),
        ("P 2_1/c", ["P 1 21/c 1", "P 21/c 1 1"]),
        ("C2/c", ["C 1 2/c 1", "C 2/c 1 1"]),
        ("C 1 2/c 1", ["C 1 2/c 1"]),
        ("F d -3 m", ["F d -3 m :1", "F d -3 m :2"]),
        ("F d -3 m :2", ["F d -3 m :2"]),
        ("Fd-3m:2", ["F d -3 m :2"]),
        ("Fd-3mZ", ["F d -3 m :2"]),
        ("F d -3 m :2 (No. 227)", ["F d -3 m :2"]),
        ("F d -3 m :2 #227", ["F d -3 m :2"]),
        ("\u2018F d \u22123 m :2\u2019", ["F d -3 m :2"]),
        ("R-3cH", ["R -3 c :H"]),
        ("R 3 m R", ["R 3 m :R"]),
        ("R -3 c (hexagonal axes)", ["R -3 c :H"]),
        ("R -3 c (Rhombohedral setting)", ["R -3 c :R"]),
        ("P2(1)", ["P 1 21 1", "P 1 1 21", "P 21 1 1"]),
        ("F d 3 m Z", ["F d -3 m :2"]),
        ("F d -3 m S", ["F d -3 m :1"]),
        ("F d -3 m (origin choice 2)", ["F d -3 m :2"]),
        ("F 41/d -3 2/m", ["F d -3 m :1", "F d -3 m :2"]),
        ("FM-3M", ["F m -3 m"]),
        ("Pa3", ["P a -3"]),
        ("R -3 c :H", ["R -3 c :H"]),
        ("R -3 c H", ["R -3 c :H"]),
        ("R-3m:r", ["R -3 m :R"]),
        ("R 3", ["R 3 :H", "R 3 :R"]),
        ("H 3 2", ["R 3 2 :H"]),
        ("C m c a", ["C m c e"]),
        ("A b m 2", ["A e m 2"]),
        ("P b n m", ["P b n m"]),
        ("P 63/m m c", ["P 63/m m c"]),
        ("P 1 1 21/b", ["P 1 1 21/b"]),
        ("B 1 1 2/b", ["B 1 1 2/b"]),
        ("P 31 1 2", ["P 31 1 2"]),
        ("I 41/a m d :2", ["I 41/a m d :2"]),
        ("P 2/m 2/m 2/m", ["P m m m"]),
        ("P q", []),
        ("C 2/m :b2", []),
    ],
)
def test_symbols(symbol, names):
    assert [setting.name for setting in by_symbol(symbol)] == names


def test_old_letters_tell_the_two_settings_of_c_m_m_e():
    """In the International Tables, x,-y,-z is an operation of C m m a, and not of C m m b."""
    (first,), (second,) = by_symbol("C m m a"), by_symbol("C m m b")
    assert by_symbol("C m m e") == [first, second]
    for setting, expected in ((first, True), (second, False)):
        images = setting.operations.images(np.array([0.1, 0.2, 0.3]))
        assert (np.abs(images - [0.1, -0.2, -0.3]).max(axis=1) < 1e-9).any() == expected


def test_hall_symbols():
    assert by_hall("-P 4n 2n").name == "P 42/m n m"
    assert by_hall('-R 3 2"').name == by_hall("-r_3_2=").name == "R -3 m :H"
    assert by_hall("P 99") is None


def test_numbers_mean_standard_settings():
    assert [s.name for s in by_number(62)] == ["P n m a"]
    assert [s.name for s in by_number(227)] == ["F d -3 m :1", "F d -3 m :2"]
    assert [s.choice for s in by_number(14)] == ["b1", "c1", "a1"]
