"""What a reader must know of how the networks were fitted: on which images, and how far."""

from __future__ import annotations

from collections.abc import Collection

from bench.records import RunRecord
from bench.table import Report

UNCONVERGED = "*(unconverged)*: its fit was cut short to save time; such quality says nothing of the network."
SHORTENED = "*(k of n epochs)*: its fit was given less time than the preset asks for; longer, it may be better."


def strangers(report: Report) -> list[str]:
    """Return a remark for each task whose networks were fitted on other images than they are scored on."""
    lines = []
    for task, sky in report.skies.items():
        strange = {
            pair.partition("/")[2]: known
            for pair, known in report.fitted_on.items()
            if pair.partition("/")[0] == task and known != sky
        }
        if strange:
            named = ", ".join(f"{network} on `{known}`" for network, known in sorted(strange.items()))
            lines.append(
                f"**{task}: fitted on other images than these** of `{sky}`: {named}. What is scored is how these "
                "weights do on images that they were not made for; `--checkpoints` takes networks of your own."
            )
    return lines


def unfinished(records: Collection[RunRecord]) -> list[str]:
    """Return what the labels of networks mean that were not fitted to the end."""
    found = {
        UNCONVERGED: any(record.hardly_fitted for record in records),
        SHORTENED: any(record.cut_to for record in records),
    }
    return [remark for remark, is_there in found.items() if is_there]
