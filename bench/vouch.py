"""What vouches for a row beside its last process: the earlier ones, and the session that was scored."""

from __future__ import annotations

from collections.abc import Mapping

from bench.interleave import Member
from bench.process import WorkerError
from bench.records import Scalar
from bench.scored import SCORED, hold_to_scored


class Vouchers:
    """The first fallback that any process of a case owned up to, by case key."""

    def __init__(self) -> None:
        self._fallbacks: dict[str, str] = {}

    def ask(self, member: Member) -> str:
        """Ask the process of *member*, which is to be replaced; return why it cannot tell, or an empty text."""
        try:
            evidence, _ = member.worker.ask("evidence")
        except WorkerError as error:
            return str(error)
        if evidence.get("fallback"):
            self._fallbacks.setdefault(member.case.key, f"in process {member.process}: {evidence['fallback']}")
        return ""

    def complete(self, key: str, evidence: dict[str, Scalar], scored: Mapping[str, Scalar]) -> None:
        """Put into the *evidence* of the last process of the case *key* what the others contradict.

        Args:
            key: Of a case.
            evidence: Changed in place; a fallback of its own stands.
            scored: `bench.scored.KEPT` of the session that was scored; empty where it is not known.
        """
        for reason in filter(None, (self._fallbacks.get(key), hold_to_scored(evidence, scored))):
            evidence.setdefault("fallback", reason)
        evidence |= {f"{SCORED}{name}": value for name, value in scored.items()}
