"""The errors of Coldchain: each is one sentence that a person on call can act on.

Three kinds decide what happens next: `Transient` is retried, `Permanent` is not, and after `CommitUnknown`
somebody has to look before anything is tried again. Airflow and the Spark job each map the kinds in one place.
"""

from __future__ import annotations


class ColdchainError(Exception):
    """The root. `exit_code` is what a process that ends with this error returns."""

    exit_code = 70


class Transient(ColdchainError):
    """Trying again may help: a service was away, a lease was held, the source moved."""

    exit_code = 75


class Permanent(ColdchainError):
    """Trying again will not help: a person, or a later run, must change something."""

    exit_code = 65


class CommitUnknown(ColdchainError):
    """The catalog's answer was lost: look at `main` before anything else."""

    exit_code = 74


class Fenced(Permanent):
    """A later attempt has taken the table over: this one may write nothing any more."""

    exit_code = 77


class LeaseHeld(Transient):
    """Another run holds the table's lease."""


class Unavailable(Transient):
    """ClickHouse, PostgreSQL, the catalog or the warehouse does not answer or refuses the password."""


class SourceMoving(Transient):
    """Rows kept changing in every window of the plan while they were read."""


class BaseMoved(Transient):
    """`main` moved between plan and stage: the offload task plans again when it is retried."""


class Superseded(Permanent):
    """`main` moved since staging: the stage is void, and no retry of the commit can publish it."""


class UnknownTable(Permanent):
    """The ledger has never heard of the table."""


class BadRequest(Permanent):
    """The parameters of the run ask for something that is not allowed; `parameter` names which."""

    def __init__(self, said: str, parameter: str = "other") -> None:
        super().__init__(said)
        self.parameter = parameter


class RegistryProblem(Permanent):
    """An entry of the registry is not valid."""


class UnsupportedType(Permanent):
    """A source column has a type that has no lossless form in Iceberg."""


class SchemaDrift(Permanent):
    """The source's columns no longer fit the Iceberg table."""


class SourceTruncates(Permanent):
    """A setting, row policy or hash of the server would make a read incomplete or incomparable."""


class SourceShrank(Permanent):
    """The source holds fewer rows than were published in a window that it should still hold."""


class ForeignFiles(Permanent):
    """`main` holds files that no segment owns."""


class LastCopy(Permanent):
    """`main` has lost rows that the source does not hold any more: who takes it as it is forgets them."""


class Incomplete(Permanent):
    """What could be moved is published; the rest waits for a person."""


class ProofFailed(Permanent):
    """What was staged is not what the source holds."""


class Damaged(Permanent):
    """A published file is gone, or holds something else than was proven."""


class StageGone(Permanent):
    """There is nothing staged that could be validated or published."""


UNEXPECTED = "Unexpected"


def kinds() -> tuple[str, ...]:
    """Name every kind of error, and what stands for any other: the bounded set that failures are counted by."""

    def below(kind: type[ColdchainError]) -> list[str]:
        return [kind.__name__, *(name for each in kind.__subclasses__() for name in below(each))]

    return (*sorted(set(below(ColdchainError))), UNEXPECTED)


EXIT_KINDS: dict[int, type[ColdchainError]] = {
    kind.exit_code: kind for kind in (ColdchainError, Transient, Permanent, CommitUnknown, Fenced)
}
