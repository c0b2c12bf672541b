"""The little language of --classes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratum.data.classes import ClassMap, parse_classes
from stratum_models.errors import UserError

NAME = st.text(st.characters(exclude_characters="+,=", exclude_categories=["C", "Z"]), min_size=1, max_size=6)


def test_merging_selecting_and_renaming() -> None:
    classes = parse_classes(" roca + glomero = ore , banda,fines=dust")
    assert classes.names == ("ore", "banda", "dust")
    assert [classes.index(c) for c in ("roca", "glomero", "banda", "fines", "other")] == [0, 0, 1, 2, None]


def test_nothing_given_means_every_category() -> None:
    classes = parse_classes("").resolve(["b", "a", "b"])
    assert classes.names == ("b", "a")
    assert classes.index("a") == 1


def test_a_class_named_twice_collects_both() -> None:
    assert parse_classes("a=x,b=y,c=x") == ClassMap(groups=(("x", ("a", "c")), ("y", ("b",))))


def test_merged_without_a_name() -> None:
    assert parse_classes("a+b").names == ("a+b",)


def test_a_category_of_the_data_set_that_is_not_named_is_no_error() -> None:
    assert parse_classes("a=x").resolve(["a", "b"]).names == ("x",)


def test_unknown_categories_list_the_known() -> None:
    with pytest.raises(UserError, match=r"'rock'.*known: banda, roca"):
        parse_classes("rock+roca=ore").resolve(["banda", "roca"])


@pytest.mark.parametrize("text", ["a,,b", "a+=x", "=x", "a=", "a=b=c", ",", "+"])
def test_malformed(text: str) -> None:
    with pytest.raises(UserError, match="not of the form"):
        parse_classes(text)


def test_a_category_in_two_classes() -> None:
    with pytest.raises(UserError, match="'a' into both 'x' and 'y'"):
        parse_classes("a=x,a+b=y")


@given(st.dictionaries(NAME, st.lists(NAME, min_size=1, max_size=4, unique=True), min_size=1, max_size=4), st.sampled_from(["", " "]))
def test_what_is_written_is_what_is_parsed(groups: dict[str, list[str]], space: str) -> None:
    used: set[str] = set()
    distinct = {}
    for name, categories in groups.items():
        own = [c for c in categories if c not in used]
        used.update(own)
        if own:
            distinct[name] = own
    text = f"{space},{space}".join(f"{space}+{space}".join(cs) + f"{space}={space}{name}" for name, cs in distinct.items())
    classes = parse_classes(text)
    assert classes.names == tuple(distinct)
    for label, categories in enumerate(distinct.values()):
        assert {classes.index(c) for c in categories} == {label}
