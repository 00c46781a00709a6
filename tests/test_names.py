"""Errors about unknown names."""

import doctest

import numpy as np
import pytest

from isa_tf import names
from isa_tf.names import Registry, id_of_class, two_ints


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
    assert doctest.testmod(names, optionflags=doctest.ELLIPSIS).failed == 0


def test_a_registry_gives_what_it_was_given():
    shapes = Registry("shape")
    shapes.register("two", 2)
    assert shapes.register("square")(len) is len
    assert list(shapes) == ["two", "square"] and shapes["square"] is len
    assert "two" in shapes and "three" not in shapes and len(shapes) == 2
    with pytest.raises(ValueError, match="unknown shape 'sqare'; did you mean \"square\""):
        shapes["sqare"]


def test_a_name_is_not_taken_from_another():
    shapes = Registry("shape")
    shapes.register("square", len)
    shapes.register("square", len)  # the same module, loaded twice
    with pytest.raises(ValueError, match="a shape 'square' already"):
        shapes.register("square", sum)
    assert shapes["square"] is len
    with pytest.raises(ValueError, match="a shape has a name"):
        shapes.register("", sum)


def test_one_int_is_both_sides():
    assert two_ints("size", 5) == two_ints("size", (5,)) == two_ints("size", [5, 5]) == (5, 5)
    assert two_ints("size", np.array([2, 3])) == (2, 3)
    for wrong in (0, -1, 1.5, "5x5", (1, 2, 3), (), True, None):
        with pytest.raises(ValueError, match="size must be an int above 0 or two of them"):
            two_ints("size", wrong)


def test_a_class_is_given_by_id_or_name():
    classes = ["road", "sky", "0"]
    assert [id_of_class(given, classes) for given in (1, "1", "sky", "0", 0)] == [1, 1, 1, 2, 0]
    for given in (3, -1, "-1", "1.0", ""):
        with pytest.raises(ValueError, match=f"unknown class to hide '{given}'; known: road, sky"):
            id_of_class(given, classes, "class to hide")
    with pytest.raises(ValueError, match='did you mean "road"'):
        id_of_class("roda", classes)
