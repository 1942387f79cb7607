"""Splits have the published sizes, hold each class in proportion, and share nothing."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lensing_models.data.importing import known_kinds
from lensing_models.data.partition import SPLITS, Entry, Shares, apportion, choose_sizes, draw_splits

TENTHS = Shares(weights={"train": 8, "validation": 1, "test": 1}, capped=False)


def entries(numbers: dict[str, int], pool: str = "") -> list[Entry]:
    return [
        Entry(name=f"{pool}{name}{index}", digest="", label=0, class_name=name, pool=pool, facts={})
        for name, number in numbers.items()
        for index in range(number)
    ]


@pytest.mark.parametrize(
    ("kind", "available", "expected"),
    [
        ("deeplense_classes", {"train": 30000, "val": 7500}, (27000, 3000, 3000)),
        ("deeplense_mass", {"": 20000}, (16200, 1800, 2000)),
        ("deeplense_models", {"": 89104}, (27000, 3000, 3000)),
        ("galaxy_zoo", {"": 28790}, (23032, 2879, 2879)),
        ("fits", {"": 1000}, (800, 100, 100)),
    ],
)
def test_a_whole_archive_gives_the_published_sizes(
    kind: str, available: dict[str, int], expected: tuple[int, ...]
) -> None:
    sizes = choose_sizes(known_kinds()[kind].shares, available, {})

    assert tuple(sizes[split] for split in SPLITS) == expected


@pytest.mark.parametrize(
    ("kind", "available", "expected"),
    [
        ("deeplense_classes", {"train": 300, "val": 75}, (270, 30, 30)),
        ("deeplense_classes", {"train": 300, "val": 15}, (135, 15, 15)),
        ("deeplense_mass", {"": 200}, (162, 18, 20)),
        ("galaxy_zoo", {"": 10}, (8, 1, 1)),
    ],
)
def test_a_smaller_archive_gives_the_same_proportions(
    kind: str, available: dict[str, int], expected: tuple[int, ...]
) -> None:
    sizes = choose_sizes(known_kinds()[kind].shares, available, {})

    assert tuple(sizes[split] for split in SPLITS) == expected


@pytest.mark.parametrize(("train", "others"), [(60, 10), (80, 10), (90, 5), (100, 0)])
def test_sizes_asked_for_are_given_and_the_others_keep_theirs_or_share_the_rest(train: int, others: int) -> None:
    sizes = choose_sizes(TENTHS, {"": 100}, {"train": train})

    assert sizes == {"train": train, "validation": others, "test": others}


def test_more_than_there_is_says_how_many_there_are() -> None:
    with pytest.raises(ValueError, match="90 train images asked for, 80 of 80 usable ones are left"):
        choose_sizes(TENTHS, {"": 80}, {"train": 90})


def test_a_part_without_images_says_how_to_go_without() -> None:
    with pytest.raises(ValueError, match=r"no usable image below val/ is left for split test; go without: --test 0"):
        choose_sizes(known_kinds()["deeplense_classes"].shares, {"train": 30}, {})


def test_a_part_without_images_can_be_gone_without() -> None:
    sizes = choose_sizes(known_kinds()["deeplense_classes"].shares, {"train": 30}, {"test": 0})

    assert sizes == {"train": 27, "validation": 3, "test": 0}


@settings(max_examples=50, deadline=None)
@given(number=st.integers(0, 1000), weights=st.lists(st.integers(1, 50), min_size=3, max_size=3))
def test_parts_add_up_and_are_within_one_of_exact(number: int, weights: list[int]) -> None:
    parts = apportion(number, dict(zip(SPLITS, weights, strict=True)))

    assert sum(parts.values()) == number
    assert all(
        abs(part - number * weight / sum(weights)) < 1 for part, weight in zip(parts.values(), weights, strict=True)
    )


@settings(max_examples=50, deadline=None)
@given(numbers=st.lists(st.integers(0, 60), min_size=1, max_size=5).filter(any), seed=st.integers(0, 9))
@example(numbers=[3, 3, 3, 37], seed=0)  # classes of one size, which ranks alone would put side by side
def test_splits_share_nothing_and_hold_each_class_in_proportion(numbers: list[int], seed: int) -> None:
    everything = entries({f"c{place}-": number for place, number in enumerate(numbers)})
    sizes = choose_sizes(TENTHS, {"": len(everything)}, {})

    splits = draw_splits(everything, sizes, TENTHS, seed)

    names = [entry.name for split in SPLITS for entry in splits[split]]
    assert sorted(names) == sorted(entry.name for entry in everything)
    for split in SPLITS:
        found = Counter(entry.class_name for entry in splits[split])
        for place, number in enumerate(numbers):
            # Tijdeman's bound: less than one image at each of the two ends of a run, and the test split begins.
            bound = 1 if split == "test" else 2
            assert abs(found[f"c{place}-"] - number * sizes[split] / len(everything)) < bound


def test_the_seed_decides_the_splits() -> None:
    everything = entries({"a": 50})
    sizes = choose_sizes(TENTHS, {"": 50}, {})

    names = [{entry.name for entry in draw_splits(everything, sizes, TENTHS, seed)["test"]} for seed in (0, 0, 1)]

    assert names[0] == names[1] != names[2]


def test_a_smaller_training_split_leaves_the_test_split_as_it_is() -> None:
    everything = entries({"a": 50, "b": 50})

    drawn = [
        draw_splits(everything, {"train": train, "validation": 10, "test": 10}, TENTHS, 0)["test"] for train in (80, 20)
    ]

    assert drawn[0] == drawn[1]


def test_a_split_comes_from_its_own_part_of_the_archive() -> None:
    shares = known_kinds()["deeplense_classes"].shares
    everything = entries({"a": 30, "b": 30}, "train") + entries({"a": 5, "b": 5}, "val")

    splits = draw_splits(everything, choose_sizes(shares, {"train": 60, "val": 10}, {}), shares, 0)

    assert {split: {entry.pool for entry in splits[split]} for split in SPLITS} == {
        "train": {"train"},
        "validation": {"train"},
        "test": {"val"},
    }
