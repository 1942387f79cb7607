"""Which image goes into which split: seeded, stratified by class, of the published sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from lensing_models.data.manifest import SplitName

#: Splits in the order of the store, and in the order in which they are drawn: the smaller ones
#: first, so that another size of the training split leaves them as they are.
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
DRAWN: tuple[SplitName, ...] = ("test", "validation", "train")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """How an archive is split by default.

    Attributes:
        weights: Images of each split: the published numbers, or their proportions.
        capped: Whether a larger archive still gives no more than these.
        pools: Part of the archive that a split is drawn from; the same one for all by default.
    """

    weights: Mapping[SplitName, int]
    capped: bool
    pools: Mapping[SplitName, str] = field(default_factory=lambda: dict.fromkeys(SPLITS, ""))


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What is kept of a candidate while the splits are drawn.

    Attributes:
        name: Its identity.
        digest: SHA-256 of its pixels.
        label: Class index, or true value of the target.
        class_name: Name of its class.
        pool: Part of the archive it comes from.
        facts: Further true parameters.
    """

    name: str
    digest: str
    label: int | float
    class_name: str
    pool: str
    facts: Mapping[str, float]


def choose_sizes(shares: Shares, available: Mapping[str, int], asked: Mapping[SplitName, int]) -> dict[SplitName, int]:
    """Return the size of each split.

    Args:
        shares: Weights of the splits; those not *asked* for keep their size, or share what the others leave.
        available: Number of usable images by pool.
        asked: Sizes that the user gave.

    Raises:
        ValueError: If a pool has too few images for what was asked, or none for a split.
    """
    left = _take(shares, available, asked)
    unasked = [split for split in SPLITS if split not in asked]
    for split in unasked:
        pool = shares.pools[split]
        if pool and not left[pool]:
            raise ValueError(f"no usable image below {pool}/ is left for split {split}; go without: --{split} 0")
    rest = _in_proportion(shares, left, unasked)
    # No larger than if nothing had been asked for.
    usual = _in_proportion(shares, {pool: available[pool] for pool in left if available.get(pool)}, list(SPLITS))
    return {split: asked[split] if split in asked else min(rest[split], usual[split]) for split in SPLITS}


def _in_proportion(shares: Shares, images: Mapping[str, int], splits: Sequence[SplitName]) -> dict[SplitName, int]:
    """Return sizes of *splits* that share *images*, by pool, all scaled alike; pools without images are passed over."""
    weights: dict[str, dict[SplitName, int]] = {}
    for split in splits:
        if shares.pools[split] in images:
            weights.setdefault(shares.pools[split], {})[split] = shares.weights[split]
    scales = [Fraction(images[pool], sum(parts.values())) for pool, parts in weights.items()]
    scale = min([*scales, Fraction(1)] if shares.capped else scales, default=Fraction(0))
    sizes: dict[SplitName, int] = {}
    for parts in weights.values():
        sizes |= apportion(int(scale * sum(parts.values())), parts)
    return sizes


def _take(shares: Shares, available: Mapping[str, int], asked: Mapping[SplitName, int]) -> dict[str, int]:
    """Return the usable images by pool that *asked* leaves; ValueError if there are too few."""
    left = {pool: available.get(pool, 0) for pool in shares.pools.values()}
    for split, size in asked.items():
        pool = shares.pools[split]
        if not 0 <= size <= left[pool]:
            where = f" below {pool}/" if pool else ""
            raise ValueError(
                f"{size} {split} images asked for, {left[pool]} of {available.get(pool, 0)} usable ones{where} are left"
            )
        left[pool] -= size
    return left


def apportion(number: int, weights: Mapping[SplitName, int]) -> dict[SplitName, int]:
    """Return whole parts of *number* in proportion to *weights*, by largest remainder."""
    exact = {split: Fraction(number * weight, sum(weights.values())) for split, weight in weights.items()}
    parts = {split: int(share) for split, share in exact.items()}
    by_remainder = sorted(exact, key=lambda split: parts[split] - exact[split])
    for split in by_remainder[: number - sum(parts.values())]:
        parts[split] += 1
    return parts


def draw_splits(
    entries: Sequence[Entry], sizes: Mapping[SplitName, int], shares: Shares, seed: int
) -> dict[SplitName, list[Entry]]:
    """Return the entries of each split, in the order of the store.

    The entries of a pool are shuffled within their class and the classes interleaved evenly: every
    beginning of the queue holds each class in proportion to within one image, so any run of it,
    as the splits are, to within two. An image's place in the shuffle depends on (seed, name) alone.
    """
    splits: dict[SplitName, list[Entry]] = {split: [] for split in SPLITS}
    for pool in set(shares.pools.values()):
        queue = _interleave([entry for entry in entries if entry.pool == pool], seed)
        start = 0
        for split in DRAWN:
            if shares.pools[split] == pool:
                splits[split] = queue[start : start + sizes[split]]
                start += sizes[split]
    return splits


def _interleave(entries: Sequence[Entry], seed: int) -> list[Entry]:
    """Return *entries* shuffled, with the classes evenly mixed."""
    by_class: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: hashlib.sha256(f"{seed}/{entry.name}".encode()).digest()):
        by_class.setdefault(entry.class_name, []).append(entry)
    members = {name: iter(by_class[name]) for name in sorted(by_class)}
    return [next(members[name]) for name in _mix({name: len(by_class[name]) for name in members})]


def _mix(numbers: Mapping[str, int]) -> Iterator[str]:
    """Yield each name as often as *numbers* says, so that every beginning holds each to within one of its share.

    Tijdeman 1980, "The chairman assignment problem", Discrete Mathematics 32, 323: of the names
    that are owed enough, the one whose share would first be missed; with k names no beginning is
    further than 1 - 1 / (2k - 2) from any share.
    """
    total, slack = sum(numbers.values()), max(1, 2 * len(numbers) - 2)
    given = dict.fromkeys(numbers, 0)
    for turn in range(1, total + 1):
        owed = {name: slack * (number * turn - given[name] * total) for name, number in numbers.items()}
        eligible = [name for name in numbers if owed[name] >= total or len(numbers) == 1]
        chosen = min(eligible, key=lambda name: Fraction((slack - 1) * total - owed[name], numbers[name]))
        given[chosen] += 1
        yield chosen
