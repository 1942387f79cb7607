from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from bench.json_lines import append_line, from_json, read_lines, to_json
from bench.records import Case, Parity, RunRecord, join_variants
from tests.bench.sample_run import make_case, make_record, make_stages, make_timing


def test_key_names_every_part_of_a_case() -> None:
    case = make_case(backend="trt", precision="fp16", batch_size=32, device="cuda")

    assert case.key == "substructure/resnet18/trt/fp16/b32/cuda/t2/default"


def test_worker_key_leaves_out_batch_and_machine() -> None:
    assert make_case(batch_size=32).worker_key == make_case(batch_size=1).worker_key


@pytest.mark.parametrize(
    ("variant", "network", "runtime"),
    [
        ("default", "efficientnet_b5", "default"),
        ("px150", "efficientnet_b5-px150", "default"),
        ("px150+graph", "efficientnet_b5-px150", "graph"),
        ("graph", "efficientnet_b5", "graph"),
        ("anchor", "efficientnet_b5", "anchor"),
    ],
)
def test_a_variant_names_a_network_a_way_to_run_it_or_both(variant: str, network: str, runtime: str) -> None:
    case = make_case(architecture="efficientnet_b5", variant=variant)

    assert (case.network, case.runtime_variant) == (network, runtime)


def test_a_network_at_another_size_has_its_own_process_and_a_key_in_its_family() -> None:
    plain, other = make_case(architecture="efficientnet_b5"), make_case(architecture="efficientnet_b5", variant="px150")

    assert plain.worker_key != other.worker_key
    assert other.key == "substructure/efficientnet_b5/eager/fp32/b1/cpu/t2/px150"


def test_each_way_to_run_a_network_has_its_own_process() -> None:
    keys = {make_case(variant=variant).worker_key for variant in ("default", "graph", "optimized", "optimized+graph")}

    assert len(keys) == 4


@pytest.mark.parametrize(
    ("names", "joined"),
    [(("default",), "default"), (("px150", "default"), "px150"), (("default", "mixed", "graph"), "mixed+graph")],
)
def test_variants_join_without_the_plain_one(names: tuple[str, ...], joined: str) -> None:
    assert join_variants(*names) == joined


def test_record_survives_json() -> None:
    record = make_record(make_case())

    assert from_json(RunRecord, to_json(record)) == record


def test_record_with_every_experiment_survives_json() -> None:
    doubled = dataclasses.replace(make_timing([[0.1, 0.2]]), experiment="throughput")
    record = make_record(make_case(), throughput_timing=doubled, end_to_end=make_stages(compute_s=0.5))

    assert from_json(RunRecord, to_json(record)) == record


def test_record_of_before_these_experiments_is_read() -> None:
    facts = json.loads(to_json(make_record(make_case())))
    new = ("artifact_cached", "load_s", "first_inference_s", "peak_host_bytes", "largest_batch")
    old = {name: fact for name, fact in facts.items() if name not in ("throughput_timing", "end_to_end")}
    old["measurement"] = {name: fact for name, fact in facts["measurement"].items() if name not in new}

    assert from_json(RunRecord, json.dumps(old)) == make_record(make_case())


def test_skipped_record_survives_json() -> None:
    record = make_record(make_case(), status="skipped", timing=None, measurement=None, parity=None, converged=None)

    assert from_json(RunRecord, to_json(record)) == record


def test_record_is_one_line() -> None:
    assert "\n" not in to_json(make_record(make_case(), reason="first\nsecond"))


def test_nan_is_null_in_json_and_nan_again_when_read() -> None:
    parity = Parity(images=256, error=math.nan, tolerance=None, passed=False)

    line = to_json(parity)

    assert json.loads(line)["error"] is None
    assert math.isnan(from_json(Parity, line).error)


def test_unknown_field_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not a Parity.*colour"):
        from_json(Parity, '{"images":1,"error":0.0,"tolerance":null,"passed":true,"colour":"red"}')


def test_missing_field_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not a Case.*threads"):
        from_json(
            Case,
            '{"task":"t","architecture":"a","backend":"b","precision":"fp32","batch_size":1,"device":"cpu"}',
        )


def test_lines_come_back_in_the_order_written(tmp_path: Path) -> None:
    records = [make_record(make_case(batch_size=size)) for size in (1, 2, 4)]

    for record in records:
        append_line(tmp_path / "records.jsonl", record)

    assert list(read_lines(tmp_path / "records.jsonl", RunRecord)) == records


def test_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    append_line(path, make_record(make_case()))
    with path.open("a", encoding="utf-8") as stream:
        stream.write(to_json(make_record(make_case(batch_size=2)))[:50])

    assert len(list(read_lines(path, RunRecord))) == 1


def test_damaged_line_before_the_last_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    good = to_json(make_record(make_case()))
    path.write_text(f"{good}\n{good[:50]}\n{good}\n", encoding="utf-8")

    with pytest.raises(ValueError, match=r"records\.jsonl, line 2"):
        list(read_lines(path, RunRecord))
