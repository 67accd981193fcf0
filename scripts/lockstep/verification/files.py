"""The proofs that files allow, without asking any endpoint."""

from collections.abc import Mapping

from lockstep.verification import verdict
from lockstep.verification.subjects import Subjects
from lockstep.verification.verdict import Proof


def files_proofs(subjects: Subjects) -> dict[str, Proof]:
    """What files establish: proof by name; those that do not apply are left out."""
    return {}


def merged(*looks: Mapping[str, Proof]) -> dict[str, Proof | None]:
    """All proofs of several looks, each with the gravest of its statuses; None where none of them applies."""
    return {name: verdict.combined([look[name] for look in looks if name in look]) for name in verdict.PROOFS}
