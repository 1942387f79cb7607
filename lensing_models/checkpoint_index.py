"""The index of a folder of checkpoints, by which weights that are not there are fetched."""

from __future__ import annotations

import hashlib
import http.client
import json
import sys
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path

INDEX = "index.json"
SCHEMES = ("https", "http", "file")
PATIENCE_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """The weights of one checkpoint, wherever they lie.

    Attributes:
        name: Their file, relative to the folder of the index.
        sha256: Digest of the file.
        size: Its length [bytes].
        url: Where it can be fetched; empty where it travels with the project.
    """

    name: str
    sha256: str
    size: int
    url: str = ""


def read_index(folder: Path) -> dict[str, Entry]:
    """Return the entries of *folder* by name; none where it has no index.

    Raises:
        ValueError: If the index is damaged.
    """
    path = folder / INDEX
    if not path.exists():
        return {}
    try:
        entries = [Entry(**facts) for facts in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is not an index: {error}; write it again: python -m lensing_models.zoo {folder}"
        ) from error
    return {entry.name: entry for entry in entries}


def fetch_weights(path: Path) -> bool:
    """Fetch the weights *path* if they are missing and an index beside or above them says where from.

    Returns:
        Whether they were fetched.

    Raises:
        ValueError: If what came is not what the index says.
        OSError: If nothing came.
    """
    if path.exists() or (entry := _find_entry(path)) is None or not entry.url:
        return False
    if urllib.parse.urlsplit(entry.url).scheme not in SCHEMES:
        raise ValueError(f"{entry.name}: {entry.url} is no address of {', '.join(SCHEMES)}; mend the {INDEX}")
    print(f"fetching {entry.url} ({entry.size / 1e6:.1f} MB)", file=sys.stderr)
    try:
        with urllib.request.urlopen(entry.url, timeout=PATIENCE_S) as answer:
            content = answer.read(entry.size + 1)
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise OSError(f"{path.name} could not be fetched from {entry.url}: {error}") from error
    if len(content) != entry.size or hashlib.sha256(content).hexdigest() != entry.sha256:
        raise ValueError(f"{entry.url} is not the {path.name} of the index: another length or SHA-256")
    # Of its own name: processes that fit together fetch at the same time.
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.fetched")
    draft.write_bytes(content)
    draft.replace(path)
    return True


def _find_entry(path: Path) -> Entry | None:
    """Return the entry of *path* in the index of its folder, or of one of the two above."""
    path = path.absolute()
    for folder in path.parents[:3]:
        if entry := read_index(folder).get(path.relative_to(folder).as_posix()):
            return entry
    return None
