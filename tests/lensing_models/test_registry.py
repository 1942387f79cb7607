import dataclasses

import pytest

from lensing_models.registry import explain_unknown, find_architecture, find_task, select_pairs, split_names

PUBLISHED = {
    (task, model)
    for task in ("halo_mass", "substructure")
    for model in ("mobilenetv3_small", "resnet18", "efficientnet_b5")
}


def names(models: str, tasks: str) -> list[tuple[str, str]]:
    return [(task.name, architecture.name) for task, architecture in select_pairs(models, tasks)]


def test_all_with_all_is_the_published_pairs_of_the_lensing_tasks() -> None:
    assert set(names("all", "all")) >= PUBLISHED
    assert ("substructure", "resnet34") not in names("all", "all")


def test_resnet34_is_published_on_galaxies() -> None:
    assert names("resnet34", "all") == [("galaxy_morphology", "resnet34")]


def test_a_pair_that_is_not_published_counts_when_both_sides_are_named() -> None:
    assert names("resnet34", "substructure") == [("substructure", "resnet34")]


def test_a_model_named_alone_gives_its_published_tasks() -> None:
    assert names("resnet18", "all") == [("halo_mass", "resnet18"), ("substructure", "resnet18")]


def test_a_variant_is_chosen_by_name_only_and_then_on_the_tasks_of_its_family() -> None:
    named = [(task.name, architecture.label) for task, architecture in select_pairs("efficientnet_b5-px150", "all")]

    assert named == [("halo_mass", "efficientnet_b5-px150"), ("substructure", "efficientnet_b5-px150")]
    assert "efficientnet_b5-px150" not in {architecture.label for _, architecture in select_pairs("all", "all")}


def test_a_variant_that_is_named_beside_all_counts() -> None:
    labels = [architecture.label for _, architecture in select_pairs("all,efficientnet_b5-px150", "substructure")]

    assert set(labels) == {"mobilenetv3_small", "resnet18", "efficientnet_b5", "efficientnet_b5-px150"}


@pytest.mark.parametrize(
    ("models", "tasks", "expected"),
    [
        ("halo_mass/resnet18", "all", [("halo_mass", "resnet18")]),
        ("halo_mass/all", "all", [pair for pair in names("all", "all") if pair[0] == "halo_mass"]),
        ("substructure/resnet34,resnet34", "all", [("galaxy_morphology", "resnet34"), ("substructure", "resnet34")]),
        ("halo_mass/resnet18,resnet18", "substructure", [("substructure", "resnet18")]),
    ],
)
def test_a_task_before_a_model_means_it_there_alone(models: str, tasks: str, expected: list[tuple[str, str]]) -> None:
    assert names(models, tasks) == expected


@pytest.mark.parametrize("entry", ["halomass/resnet18", "halo_mass/resnet19"])
def test_an_unknown_side_of_a_pair_is_named(entry: str) -> None:
    with pytest.raises(LookupError, match=r"unknown .*Did you mean"):
        select_pairs(entry, "all")


def test_pairs_come_in_the_order_of_tasks_then_of_rows() -> None:
    assert names("resnet18,mobilenetv3_small", "substructure") == [
        ("substructure", "mobilenetv3_small"),
        ("substructure", "resnet18"),
    ]


def test_a_name_given_twice_counts_once() -> None:
    assert names("resnet18, resnet18", "halo_mass") == [("halo_mass", "resnet18")]


def test_an_unknown_model_is_named_with_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(LookupError, match=r"unknown model 'resnet19'; known: .*resnet34\. Did you mean 'resnet18'\?"):
        select_pairs("resnet19", "all")


def test_a_typing_error_beside_all_is_named() -> None:
    with pytest.raises(LookupError, match="unknown task 'halomass'"):
        select_pairs("all", "all,halomass")


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(LookupError, match=r"unknown task 'halomass'.*'halo_mass'"):
        select_pairs("all", "halomass")


def test_a_name_that_is_near_none_gets_no_suggestion() -> None:
    assert "Did you mean" not in explain_unknown("model", "zzz", ["resnet18"])


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(ValueError, match="no model named"):
        split_names("model", " , ", ["resnet18"])


@pytest.mark.parametrize("find", [find_task, find_architecture])
def test_finding_an_unknown_name_raises(find) -> None:
    with pytest.raises(LookupError, match="unknown"):
        find("nothing")


def test_a_regression_is_of_one_positive_target() -> None:
    task = find_task("halo_mass")
    (target,) = task.targets

    for targets in ((target, target), (dataclasses.replace(target, valid=(-1.0, 1.0)),)):
        with pytest.raises(ValueError, match="log10 of one target, which is positive"):
            dataclasses.replace(task, targets=targets)
