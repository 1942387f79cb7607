from __future__ import annotations

import dataclasses

import pytest

from bench.backends import known_backends
from bench.plan import Sweep, expand_sweep, parse_batch_sizes, resolve_threads, split_sets
from bench.records import Case
from lensing_models import registry
from lensing_models.registry import find_architecture


def expand(**changes: object) -> Sweep:
    options: dict[str, object] = {
        "models": "all",
        "tasks": "all",
        "backends": "all",
        "precisions": None,
        "batch_sizes": "1,32",
        "device": "cpu",
        "threads": 2,
    }
    return expand_sweep(**{**options, **changes}, known=known_backends())  # type: ignore[arg-type]


def test_all_is_the_published_pairs() -> None:
    pairs = {(task.name, architecture.name) for task, architecture in expand().pairs}

    networks = {"mobilenetv3_small", "resnet18", "efficientnet_b5"}
    lensing = {(task, network) for task in ("substructure", "halo_mass") for network in networks}
    assert pairs == lensing | {("galaxy_morphology", "resnet34")}


def test_an_unpublished_pair_is_had_by_naming_it() -> None:
    sweep = expand(models="resnet34", tasks="substructure")

    assert [(task.name, architecture.name) for task, architecture in sweep.pairs] == [("substructure", "resnet34")]


def test_every_cell_is_planned_once() -> None:
    keys = [planned.case.key for planned in expand().cases]

    # 7 pairs x 7 backends x (fp32, bf16) x 2 batch sizes
    assert len(keys) == len(set(keys)) == 7 * 7 * 2 * 2


def test_backends_that_compile_for_minutes_are_planned_on_request() -> None:
    planned = {planned.case.backend for planned in expand(backends=None).cases}

    assert planned == set(known_backends()) - {"inductor", "aoti"}


def test_a_refused_cell_is_planned_with_its_reason() -> None:
    sweep = expand(models="resnet18", tasks="halo_mass", backends="onnx", precisions="fp32,bf16", batch_sizes="1")

    reasons = {planned.case.precision: planned.skip_reason for planned in sweep.cases}
    assert reasons["fp32"] == ""
    assert "bfloat16" in reasons["bf16"]


def test_tensorrt_on_a_cpu_says_what_it_needs() -> None:
    sweep = expand(backends="trt")

    assert all("NVIDIA" in planned.skip_reason for planned in sweep.cases)


def test_all_precisions_are_the_backends_own() -> None:
    sweep = expand(
        backends="onnx,openvino",
        precisions="all",
        variants="default",
        models="resnet18",
        tasks="halo_mass",
        batch_sizes="1",
    )

    assert [(p.case.backend, p.case.precision) for p in sweep.cases if not p.skip_reason] == [
        ("onnx", "fp32"),
        ("onnx", "int8"),
        ("openvino", "fp32"),
        ("openvino", "bf16"),
        ("openvino", "int8"),
    ]


@pytest.mark.parametrize(("backend", "kept"), [("onnx", ["mixed"]), ("openvino", ["mixed", "mixed+bf16"])])
def test_int8_is_planned_mixed_too(backend: str, kept: list[str]) -> None:
    models = "mobilenetv3_small,resnet18,efficientnet_b5-px150"
    sweep = expand(models=models, tasks="substructure", backends=backend, precisions="int8", batch_sizes="1")

    assert [(p.case.network, p.case.variant, p.skip_reason) for p in sweep.cases] == [
        *[("mobilenetv3_small", variant, "") for variant in ("default", *kept)],
        *[("resnet18", variant, "") for variant in ("default", *kept)],
        *[("efficientnet_b5-px150", variant, "") for variant in ("px150", *(f"px150+{name}" for name in kept))],
    ]


def test_int8_on_the_cuda_provider_of_onnx_runtime_is_refused_with_its_reason() -> None:
    sweep = expand(models="resnet18", tasks="halo_mass", backends="onnx", precisions="int8", device="cuda")

    assert {planned.skip_reason for planned in sweep.cases} == {
        "ONNX Runtime's CUDA provider has no kernel for quantised convolution"
    }


@pytest.mark.parametrize(
    ("option", "text", "hint"),
    [
        ("backends", "tr", "'trt'"),
        ("models", "resnet19", "'resnet18'"),
        ("precisions", "bf61", "'bf16'"),
        ("variants", "grpah", "'graph'"),
    ],
)
def test_an_unknown_name_gets_the_nearest_one(option: str, text: str, hint: str) -> None:
    with pytest.raises(LookupError, match=f"Did you mean {hint}"):
        expand(**{option: text})


def test_a_selection_without_a_pair_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    unpublished = dataclasses.replace(find_architecture("resnet34"), published={})
    monkeypatch.setattr(registry, "ARCHITECTURES", (unpublished,))

    with pytest.raises(ValueError, match="empty selection"):
        expand(models="resnet34")


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "one", "", ","])
def test_a_batch_size_is_a_positive_whole_number(text: str) -> None:
    with pytest.raises(ValueError, match="positive whole numbers"):
        parse_batch_sizes(text)


def test_a_repeated_batch_size_counts_once() -> None:
    assert parse_batch_sizes("32, 1,32") == [32, 1]


def test_no_threads_are_refused() -> None:
    with pytest.raises(ValueError, match="--threads 0"):
        resolve_threads(0)


@pytest.mark.parametrize("count", [1, 6, 7, 21])
def test_sets_are_few_and_even(count: int) -> None:
    names = [str(number) for number in range(count)]

    sets = split_sets(names, 6)

    assert [name for chosen in sets for name in chosen] == names
    assert len(sets) == -(-count // 6)
    assert max(map(len, sets)) - min(map(len, sets)) <= 1


def variants(**changes: object) -> list[tuple[str, str]]:
    """Return the variant of each case of one small cell, and why it is skipped."""
    small = {"models": "resnet18", "tasks": "halo_mass", "precisions": "fp32", "batch_sizes": "1", **changes}
    return [(planned.case.variant, planned.skip_reason) for planned in expand(**small).cases]


def test_what_is_on_request_is_planned_by_naming_it_or_all() -> None:
    assert variants(backends="torchscript") == [("default", "")]
    assert variants(backends="torchscript", variants="optimized") == [("optimized", "")]
    assert variants(backends="torchscript", variants="all", threads=1) == [("default", ""), ("optimized", "")]


def test_each_variant_has_its_tuned_one_beside_it() -> None:
    planned = variants(backends="torchscript", variants="all")

    assert planned == variants(backends="torchscript", variants="default,optimized", tune=True)
    assert [variant for variant, _ in planned] == ["default", "tuned", "optimized", "optimized+tuned"]


def test_a_graph_is_captured_around_what_was_tuned() -> None:
    planned = variants(backends="onnx", device="cuda", tune=True)

    assert [variant for variant, _ in planned] == ["default", "tuned", "graph", "tuned+graph"]


def test_what_has_nothing_to_choose_has_no_tuned_variant() -> None:
    assert variants(backends="torchscript", threads=1, tune=True) == [("default", "")]


def test_on_cuda_each_variant_is_planned_with_a_graph_too() -> None:
    planned = variants(backends="eager,onnx", device="cuda")

    assert [variant for variant, _ in planned] == ["default", "graph"] * 2


def test_a_variant_that_a_cell_lacks_is_planned_with_its_reason() -> None:
    assert variants(backends="eager", variants="default,optimized") == [
        ("default", ""),
        ("optimized", "eager fp32 on cpu has no variant 'optimized'; it has default, tuned"),
    ]
    assert variants(backends="eager", variants="graph") == [("graph", "a CUDA graph needs device cuda")]


def test_a_variant_joins_that_of_the_network() -> None:
    planned = variants(models="efficientnet_b5-px150", backends="eager", device="cuda")

    assert [variant for variant, _ in planned] == ["px150", "px150+graph"]


def test_a_backend_says_which_cells_have_its_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    def mixed(case: Case) -> tuple[str, ...]:
        return ("default", "mixed") if case.precision == "bf16" else ("default",)

    monkeypatch.setattr(known_backends()["openvino"], "variants_of", mixed, raising=False)

    planned = expand(models="resnet18", tasks="halo_mass", backends="openvino", batch_sizes="1").cases

    assert [(p.case.precision, p.case.variant) for p in planned] == [
        ("fp32", "default"),
        ("bf16", "default"),
        ("bf16", "mixed"),
    ]
