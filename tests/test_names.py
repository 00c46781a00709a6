"""Errors about unknown names."""

import doctest

import pytest

from isa_tf import names


def test_few_names_are_all_told():
    text = names.unknown("order", "lng", ["long", "short"])
    assert text == "unknown order 'lng'; did you mean \"long\"? known: long, short"
    assert names.unknown("order", 7, ("long", "short")) == "unknown order 7; known: long, short"


def test_many_names_are_told_where_none_is_near():
    known = {f"resnet{i}_v1c": i for i in range(30)}
    near = names.unknown("backbone", "resnet7_v1d", known)
    assert near.startswith("unknown backbone 'resnet7_v1d'; did you mean \"resnet7_v1c\" or ")
    assert "known" not in near.removeprefix("unknown")
    assert all(name in names.unknown("backbone", "zzz", known) for name in known)


@pytest.mark.parametrize("known", [[], {}])
def test_nothing_is_known(known):
    assert names.unknown("class", "sky", known) == "unknown class 'sky'; there is none"


def test_example():
    assert doctest.testmod(names).failed == 0
