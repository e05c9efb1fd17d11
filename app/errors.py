"""The errors of the application, each leaf with a stable code.

HilumError
├── ConfigError
│   ├── ConfigFileMissing        config.file-missing
│   ├── ConfigUnknownKey         config.unknown-key
│   ├── ConfigInvalid            config.invalid
│   └── UnauthenticatedBind      config.unauthenticated-bind
├── SpoolError
│   ├── DiskShort                spool.disk-short
│   ├── SpoolUnwritable          spool.unwritable
│   ├── NotInSpool               spool.missing
│   └── SpoolDamaged             spool.damaged
├── DatabaseError
│   ├── DatabaseUnavailable      database.unavailable
│   ├── DatabaseBusy             database.busy
│   ├── SchemaMismatch           database.schema-mismatch
│   └── UnstorableValue          database.unstorable-value
├── AuditError
│   ├── AuditBroken              audit.broken
│   ├── AuditUnbound             audit.unbound
│   ├── AuditUnserialised        audit.unserialised
│   ├── CheckpointMissing        audit.checkpoint-missing
│   └── CheckpointUnreadable     audit.checkpoint-unreadable
├── ReceiveError
│   ├── ConflictingInstance      receive.conflicting-instance
│   ├── ConflictingSeries        receive.conflicting-series
│   ├── AnotherInstance          receive.another-instance
│   ├── AnotherStudy             receive.another-study
│   └── FileChanged              receive.file-changed
├── RecordError
│   ├── NotFound                 record.not-found
│   └── NotReproduced            record.not-reproduced
└── WorklistError
    ├── TransactionMissing       worklist.transaction-missing
    ├── TransactionWrong         worklist.transaction-wrong
    ├── NotClaimed               worklist.not-claimed
    ├── AlreadyClaimed           worklist.already-claimed
    ├── AlreadyEnded             worklist.already-ended
    ├── Unfinished               worklist.unfinished
    └── PerformerUnreachable     worklist.performer-unreachable

A message says what to do next and never holds patient data.
"""

from pathlib import Path


class HilumError(Exception):
    """Any error that the application raises on purpose."""

    code = "hilum"


class ConfigError(HilumError):
    """The settings cannot be used as they are."""

    code = "config"


class ConfigFileMissing(ConfigError):
    """The named settings file is not there."""

    code = "config.file-missing"

    def __init__(self, path: Path) -> None:
        super().__init__(f"no settings file at {path}; check --config, or leave it out to run with the defaults")
        self.path = path


class ConfigUnknownKey(ConfigError):
    """A key that no setting has: refused, since a misspelt limit would otherwise silently not hold."""

    code = "config.unknown-key"

    def __init__(self, key: str, *, source: str, nearest: str | None) -> None:
        advice = f"did you mean {nearest}?" if nearest else "`hilum config show` lists every key"
        super().__init__(f"{source} sets {key}, which is no setting; {advice}")
        self.key = key


class ConfigInvalid(ConfigError):
    """A setting's value cannot be used."""

    code = "config.invalid"


class UnauthenticatedBind(ConfigError):
    """The web page would answer other machines without asking who is there."""

    code = "config.unauthenticated-bind"

    def __init__(self, host: str) -> None:
        super().__init__(
            f"web.host is {host}, which other machines can reach, but nobody would have to log in; set web.username "
            "and web.password_hash (`hilum config hash-password` makes one), or bind 127.0.0.1"
        )
        self.host = host


class SpoolError(HilumError):
    """The spool of received files cannot do what was asked."""

    code = "spool"


class DiskShort(SpoolError):
    """Storing the file would leave less free space than `storage.keep_free_bytes`."""

    code = "spool.disk-short"

    def __init__(self, root: Path, *, free_bytes: int, needed_bytes: int) -> None:
        super().__init__(
            f"the spool's disk ({root}) has {free_bytes} bytes free and needs {needed_bytes} to take this file and "
            "keep its reserve; free some space and send the file again"
        )
        self.free_bytes = free_bytes
        self.needed_bytes = needed_bytes


class SpoolUnwritable(SpoolError):
    """The operating system refused a write; nothing was stored."""

    code = "spool.unwritable"

    def __init__(self, root: Path, reason: str) -> None:
        super().__init__(f"the spool at {root} cannot be written: {reason}; check its owner, mode and disk")


class NotInSpool(SpoolError):
    """No file with this digest is kept."""

    code = "spool.missing"

    def __init__(self, sha256: str) -> None:
        super().__init__(f"the spool holds no file {sha256}; restore it from the backup of the spool")
        self.sha256 = sha256


class SpoolDamaged(SpoolError):
    """A kept file's bytes no longer have the digest that names it."""

    code = "spool.damaged"

    def __init__(self, sha256: str) -> None:
        super().__init__(f"the bytes of {sha256} in the spool have changed; restore the file from the backup")
        self.sha256 = sha256


class DatabaseError(HilumError):
    """The database cannot do what was asked."""

    code = "database"


class DatabaseUnavailable(DatabaseError):
    """No connection, or no driver for the URL."""

    code = "database.unavailable"


class DatabaseBusy(DatabaseError):
    """Somebody else holds the lock that a migration, or a writer, needs."""

    code = "database.busy"


class SchemaMismatch(DatabaseError):
    """The tables are not the ones this version works with."""

    code = "database.schema-mismatch"


class UnstorableValue(DatabaseError):
    """A value that the two engines would not give back as it was: a naive time, NaN or an infinity."""

    code = "database.unstorable-value"


class AuditError(HilumError):
    """The audit trail cannot be written or trusted."""

    code = "audit"


class AuditBroken(AuditError):
    """Verification found a row that does not hold."""

    code = "audit.broken"


class AuditUnbound(AuditError):
    """A transaction would have committed rows that no audit event names; it was rolled back."""

    code = "audit.unbound"

    def __init__(self, tables: list[str]) -> None:
        super().__init__(
            f"new rows of {', '.join(tables)} have no audit event; call audit.append in the same transaction"
        )
        self.tables = tables


class AuditUnserialised(AuditError):
    """An event was appended in a transaction that another writer could overtake."""

    code = "audit.unserialised"

    def __init__(self) -> None:
        super().__init__(
            "audit events are appended inside `with sessions.begin() as session`, which takes SQLite's write lock"
        )


class CheckpointMissing(AuditError):
    """The checkpoint to verify against is not there."""

    code = "audit.checkpoint-missing"

    def __init__(self, path: Path) -> None:
        super().__init__(f"there is no checkpoint at {path}")
        self.path = path


class CheckpointUnreadable(AuditError):
    """The outside checkpoint file is there and is not a checkpoint."""

    code = "audit.checkpoint-unreadable"

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} is no audit checkpoint; restore it from a copy, since a fresh one cannot show a cut tail"
        )
        self.path = path


class ReceiveError(HilumError):
    """A file that was read could not be taken in."""

    code = "receive"


class ConflictingInstance(ReceiveError):
    """Other bytes are already stored under this SOP Instance UID; the first ones stay."""

    code = "receive.conflicting-instance"

    def __init__(self, sop_instance_uid: str) -> None:
        super().__init__(
            f"other bytes are already stored as SOP Instance UID {sop_instance_uid}; the first file stays, this one is "
            "quarantined; ask the sender which of the two is right"
        )
        self.sop_instance_uid = sop_instance_uid


class ConflictingSeries(ReceiveError):
    """The file's series is already stored as part of another study; nothing is moved."""

    code = "receive.conflicting-series"

    def __init__(self, series_instance_uid: str) -> None:
        super().__init__(
            f"Series Instance UID {series_instance_uid} is already stored under another Study Instance UID; this file "
            "is quarantined; ask the sender which of the two is right"
        )
        self.series_instance_uid = series_instance_uid


class AnotherInstance(ReceiveError):
    """The sender announced one SOP Instance UID, and the data set holds another (PS3.4 B.2.3, status A900)."""

    code = "receive.another-instance"

    def __init__(self, announced: str, found: str) -> None:
        super().__init__(f"the data set is SOP instance {found}, and {announced} was announced; nothing was stored")


class AnotherStudy(ReceiveError):
    """The sender announced one study, and the data set is of another (PS3.18 10.5.2)."""

    code = "receive.another-study"

    def __init__(self, announced: str, found: str) -> None:
        super().__init__(f"the data set is of study {found}, and {announced} was announced; nothing was stored")


class FileChanged(ReceiveError):
    """The file was written to while it was read."""

    code = "receive.file-changed"

    def __init__(self) -> None:
        super().__init__("the file changed while it was being read; send it again when its writer has finished")


class RecordError(HilumError):
    """A record was asked for that cannot be given."""

    code = "record"


class NotFound(RecordError):
    """No such record, or none that this actor may see: the answer is the same on purpose."""

    code = "record.not-found"

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"there is no {kind} {name} here, or you may not see it")


class NotReproduced(RecordError):
    """The model or its input is no longer what a prediction was made with, so nothing can be added to it."""

    code = "record.not-reproduced"


class WorklistError(HilumError):
    """A work item cannot be changed as was asked (PS3.4 Annex CC)."""

    code = "worklist"


class TransactionMissing(WorklistError):
    """Whoever changes a work item names the transaction UID under which it is held."""

    code = "worklist.transaction-missing"

    def __init__(self) -> None:
        super().__init__("(0008,1195) TransactionUID is missing; claim the work item with one, and give it each time")


class TransactionWrong(WorklistError):
    """The work item is held under another transaction UID."""

    code = "worklist.transaction-wrong"

    def __init__(self) -> None:
        super().__init__("(0008,1195) TransactionUID is not the one under which the work item is held")


class NotClaimed(WorklistError):
    """Nobody holds the work item, so that nobody can end it."""

    code = "worklist.not-claimed"

    def __init__(self) -> None:
        super().__init__("the work item is SCHEDULED; change its state to IN PROGRESS first")


class AlreadyClaimed(WorklistError):
    """Another was faster."""

    code = "worklist.already-claimed"

    def __init__(self) -> None:
        super().__init__("the work item is IN PROGRESS already; take another one")


class AlreadyEnded(WorklistError):
    """A work item that has ended stays as it is."""

    code = "worklist.already-ended"

    def __init__(self, state: str) -> None:
        super().__init__(f"the work item is {state} and can no longer be changed")
        self.state = state


class Unfinished(WorklistError):
    """What PS3.4 Table CC.2.5-3 asks of a completed step has not been said of it."""

    code = "worklist.unfinished"

    def __init__(self, missing: list[str]) -> None:
        super().__init__(
            "UnifiedProcedureStepPerformedProcedureSequence must be set before the work item is completed; it lacks "
            + ", ".join(missing)
        )
        self.missing = missing


class PerformerUnreachable(WorklistError):
    """The application that holds the work item cannot be told that somebody wants it cancelled."""

    code = "worklist.performer-unreachable"

    def __init__(self, performer: str) -> None:
        super().__init__(f"{performer} holds the work item and cannot be told; ask there for it to be cancelled")
