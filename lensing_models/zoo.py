"""A folder of checkpoints: its index, and its page that tells what each is worth beside what was published.

python -m lensing_models.zoo results/checkpoints [--url-prefix https://...]
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lensing_models.checkpoint import Card, read_card, verify_checkpoint
from lensing_models.checkpoint_index import INDEX, Entry, read_index
from lensing_models.command_line import Parser, run_main
from lensing_models.metrics import known_metrics
from lensing_models.registry import find_architecture, find_task

PAGE, SUFFIX = "README.md", ".safetensors"
SHOWN = 2  # metrics of a task
HEAD = """# Checkpoints

`bench.run` takes the files of `results/checkpoints`, or of the folder that `--checkpoints` names, and none below it.

Test metrics of the rounded weights, eager fp32, with 95 % intervals (bootstrap over the test images).
*Sky* is what training and test images show: a set of physical assumptions (`docs/data.md`), or the kind of archive.
*Published* is of the DeepLense archives or Galaxy Zoo: **other images**, so the two stand side by side and do not
compare digit by digit. *Epochs* are those until the best validated one, whose weights these are.
*Test split used N times*: N fits to these data at this path, this one the last, were scored on it, so it may have been
chosen by its score.
`python -m lensing_models.zoo FOLDER` writes this page and `index.json` from the cards.
"""


def write_index(folder: Path, *, url_prefix: str | None = None) -> list[Entry]:
    """Write the index of the checkpoints in *folder* and below, and return it in the order of the names.

    An entry whose weights are not there is kept if its card is. With a prefix each entry's
    address is that and its name; without, the address it had.

    Raises:
        ValueError: If a checkpoint is damaged, or weights changed under an address.
    """
    known = read_index(folder)
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob(f"*{SUFFIX}")}
    entries = {name: entry for name, entry in known.items() if (folder / name).with_suffix(".json").is_file()}
    for name, path in found.items():
        url = known[name].url if name in known else ""
        entry = Entry(name=name, sha256=verify_checkpoint(path).sha256, size=path.stat().st_size, url=url)
        if url and url_prefix is None and entry.sha256 != known[name].sha256:
            raise ValueError(f"{path} is no longer what {url} holds; upload it and give --url-prefix")
        entries[name] = entry
    if url_prefix is not None:
        prefix = url_prefix.rstrip("/")
        entries = {
            name: dataclasses.replace(entry, url=f"{prefix}/{name}" if prefix else "")
            for name, entry in entries.items()
        }
    rows = [entries[name] for name in sorted(entries)]
    text = json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n"
    (folder / INDEX).write_text(text, encoding="utf-8")
    return rows


def render_zoo(weights: Mapping[str, Path]) -> str:
    """Return the page as markdown.

    Args:
        weights: Path of each checkpoint by its name in the folder; the cards lie there, the
            weights may not.
    """
    rows = [(name, read_card(path)) for name, path in sorted(weights.items())]
    parts = [HEAD]
    for task in dict.fromkeys(card.task for _, card in rows):
        parts += _table(task, [(name, card) for name, card in rows if card.task == task])
    return "\n".join(parts) + "\n"


def _table(task: str, rows: Iterable[tuple[str, Card]]) -> list[str]:
    """Return heading and table of one task."""
    metrics = find_task(task).metrics[:SHOWN]
    head = ["network", "sky", *metrics, "published", "images", "epochs", "how", "file"]
    lines = [f"## {task}", "", f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for name, card in rows:
        family = find_architecture(find_architecture(card.architecture).name)
        published = family.published.get(task, {})
        cells = [
            card.architecture,
            card.sky,
            *(_with_interval(card, metric) for metric in metrics),
            ", ".join(f"{metric} {value:g}" for metric, value in published.items()),
            f"{card.scored_images.get('test', 0)} test",
            f"{card.epochs:.3g}",
            _how(card),
            f"`{name}`",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _with_interval(card: Card, metric: str) -> str:
    """Return a test metric with its interval."""
    if metric not in card.test:
        return ""
    unit = known_metrics()[metric].unit
    text = f"{card.test[metric]:.4g}"
    if metric in card.intervals:
        low, high = card.intervals[metric]
        text += f" ({low:.4g} to {high:.4g})"
    return f"{text} {unit}".rstrip()


def _how(card: Card) -> str:
    """Return how it was fitted, in words."""
    words = [f"preset {card.preset}", "" if card.converged else f"**{card.state}**"]
    words += ["from timm's weights" if card.pretrained else "", "streamed" if card.stream else ""]
    words += [f"from {card.start[:12]}" if card.start else ""]
    words += [f"taught by {card.teacher[:12]}" if card.teacher else ""]
    words += [f"{card.processes} processes" if card.processes > 1 else ""]
    words += [f"test split used {card.test_uses} times" if card.test_uses > 1 else ""]
    return ", ".join(filter(None, words))


def main(argv: Sequence[str]) -> int:
    """Write index and page of the folder that *argv* names and print the index."""
    parser = Parser(prog="lensing_models.zoo", description="Write page and index of a folder of checkpoints.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url-prefix", metavar="URL", help="where the files were uploaded; '' for nowhere")
    arguments = parser.parse_args(argv)
    if not arguments.folder.is_dir():
        parser.error(f"{arguments.folder} is not a folder")
    own = arguments.folder / PAGE
    if own.is_file() and not own.read_text(encoding="utf-8").startswith(HEAD.splitlines()[0]):
        parser.error(f"{own} is not a page of checkpoints, and would be replaced; name the folder that has them")
    entries = write_index(arguments.folder, url_prefix=arguments.url_prefix)
    page = render_zoo({entry.name: arguments.folder / entry.name for entry in entries})
    own.write_text(page, encoding="utf-8")
    for entry in entries:
        print(f"{entry.name}  {entry.sha256[:12]}  {entry.size / 1e6:.1f} MB  {entry.url}".rstrip())
    return 0


if __name__ == "__main__":
    run_main(main)
