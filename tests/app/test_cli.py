"""The command keeps its contract: exit codes, what goes to which stream, and an answer at once to --help."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli import COMMANDS, build_parser
from app.commands import audit as audit_command
from app.commands import config as config_command
from app.commands import db as db_command
from app.db.session import Sessions
from app.errors import (
    AuditBroken,
    CheckpointMissing,
    ConfigInvalid,
    NotInSpool,
    SchemaMismatch,
    SpoolDamaged,
    UnauthenticatedBind,
)
from app.passwords import password_matches
from app.spool import Spool
from tests.app.records import Clock, fill

HEAVY = ("torch", "onnxruntime", "gradio", "sqlalchemy", "numpy", "pydicom", "fastapi", "pydantic")


def hilum(*words: str, folder: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    program = "import sys; from app.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, *words]
    return subprocess.run(command, cwd=folder, input=stdin, capture_output=True, text=True, check=False)


def loaded_by(program: str) -> list[str]:
    report = f"{program}; import sys; print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    loaded: list[str] = json.loads(done.stderr.splitlines()[-1].replace("'", '"'))
    return loaded


@pytest.fixture
def settings_file(database_url: str, checkpoint_path: Path, tmp_path: Path) -> Path:
    path = tmp_path / "hilum.toml"
    path.write_text(
        f'[storage]\ndatabase_url = "{database_url}"\nspool = "{tmp_path}/spool"\ncheckpoint = "{checkpoint_path}"\n'
    )
    return path


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, where the default settings put nothing by accident."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_the_parser_is_built_without_anything_heavy() -> None:
    assert loaded_by("from app.cli import build_parser; build_parser([]).format_help()") == []


@pytest.mark.parametrize("name", ["db", "audit", "config"])
def test_a_commands_help_needs_nothing_heavy_either(name: str) -> None:
    assert loaded_by(f"from app.cli import build_parser; build_parser(['{name}']).format_help()") == []


def test_every_command_of_the_table_has_its_module() -> None:
    folder = Path(audit_command.__file__).parent
    assert [name for name in COMMANDS if not (folder / f"{name}.py").is_file()] == []


def test_wrong_usage_ends_with_2_and_leaves_stdout_alone(elsewhere: Path) -> None:
    for words in ((), ("nonsense",), ("db",), ("db", "upgrade", "--nonsense")):
        done = hilum(*words, folder=elsewhere)
        assert (done.returncode, done.stdout) == (2, "")
        assert "usage: hilum" in done.stderr


def test_an_error_of_the_domain_ends_with_1_and_one_line_of_code_and_message(elsewhere: Path) -> None:
    done = hilum("db", "current", "--config", "missing.toml", folder=elsewhere)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("config.file-missing: no settings file at missing.toml")
    assert done.stderr.count("\n") == 1


def test_a_server_that_does_not_answer_is_an_error_without_its_password(elsewhere: Path) -> None:
    settings = elsewhere / "hilum.toml"
    settings.write_text('[storage]\ndatabase_url = "postgresql://ada:secret@127.0.0.1:1/hilum"')
    done = hilum("db", "current", "--config", "hilum.toml", folder=elsewhere)
    assert done.returncode == 1
    assert done.stderr.startswith("database.unavailable: ")
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_traceback(elsewhere: Path) -> None:
    program = "import sys; from app.cli import main; sys.exit(main(['config', 'show']))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (1, b"")


@pytest.mark.parametrize("words", [["db", "--config", "F", "current"], ["db", "current", "--config", "F"]])
def test_common_options_stand_before_or_after_the_verb(words: list[str]) -> None:
    args = build_parser(words).parse_args(words)
    assert (args.config, args.verbose, args.verb) == (Path("F"), False, "current")


def test_db_goes_from_nothing_to_current(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [run(db_command, "db", verb) for verb in ("current", "check", "upgrade", "current", "check")] == [
        0,
        1,
        0,
        0,
        0,
    ]
    assert capsys.readouterr().out.splitlines() == [
        "nothing",
        "the database is at revision nothing, this version works with 0003_dicomweb",
        "nothing -> 0003_dicomweb",
        "0003_dicomweb",
        "the database is as 0003_dicomweb says",
    ]


def test_audit_verify_says_what_it_verified(
    sessions: Sessions, settings_file: Path, now: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(sessions, now)
    assert run(audit_command, "audit", "verify", "--config", str(settings_file)) == 0
    said = capsys.readouterr().out
    assert said == "the audit trail holds: 4 events over 14 rows; the checkpoint knows 4\n"
    assert run(audit_command, "audit", "verify", "--json", "--config", str(settings_file)) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["events"], report["rows"], report["broken"]) == (4, 14, None)
    assert report["head"] == report["checkpoint"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_audit_verify_names_the_first_broken_row_and_ends_with_1(
    sessions: Sessions, database_url: str, settings_file: Path, now: Clock, tmp_path: Path
) -> None:
    import sqlite3

    fill(sessions, now)
    connection = sqlite3.connect(database_url.removeprefix("sqlite:///"))
    connection.execute("DROP TRIGGER finding_refuses_update")
    connection.execute("UPDATE finding SET probability = 0.01 WHERE id = 2")
    connection.commit()
    connection.close()
    done = hilum("audit", "verify", "--config", str(settings_file), folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "audit.broken: finding 2: has changed since audit event 2 named it\n"
    done = hilum("audit", "verify", "--json", "--config", str(settings_file), folder=tmp_path)
    assert json.loads(done.stdout)["broken"]["table"] == "finding"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_audit_verify_reads_the_files_where_asked(
    sessions: Sessions, settings_file: Path, now: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from app.db import audit
    from app.identity import LOCAL_USER
    from tests.app.records import study

    spool = Spool(tmp_path / "spool")
    kept = [spool.put(content).sha256 for content in (b"one", b"two")]
    with sessions.begin() as session:
        received = study(now())
        for image, sha256 in zip(received.series[0].instances, kept, strict=True):
            image.sha256 = sha256
        audit.append(session, actor=LOCAL_USER, action="receive", subjects=[received], now=now)
    words = ("audit", "verify", "--files", "--config", str(settings_file))
    assert run(audit_command, *words) == 0
    assert "and 2 files" in capsys.readouterr().out
    path = spool.path(kept[0])
    path.chmod(0o640)
    path.write_bytes(b"onE")
    with pytest.raises(SpoolDamaged):
        run(audit_command, *words)
    path.unlink()
    with pytest.raises(NotInSpool):
        run(audit_command, *words)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_audit_verify_takes_a_copy_of_the_checkpoint(
    sessions: Sessions, settings_file: Path, checkpoint_path: Path, now: Clock, tmp_path: Path
) -> None:
    fill(sessions, now)
    copy = tmp_path / "copy.json"
    words = ("audit", "verify", "--checkpoint", str(copy), "--config", str(settings_file))
    with pytest.raises(CheckpointMissing):
        run(audit_command, *words)
    copy.write_text(json.dumps({"sequence": 9, "hash": "0" * 64}))
    with pytest.raises(AuditBroken, match="audit_event 5: is missing"):
        run(audit_command, *words)


def test_audit_verify_of_an_empty_database_says_to_upgrade(elsewhere: Path) -> None:
    with pytest.raises(SchemaMismatch, match="hilum db upgrade"):
        run(audit_command, "audit", "verify")


def test_config_show_prints_toml_that_config_takes(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HILUM__WEB__PORT", "9999")
    assert run(config_command, "config", "show") == 0
    shown = capsys.readouterr().out
    (elsewhere / "copy.toml").write_text(shown)
    monkeypatch.delenv("HILUM__WEB__PORT")
    assert run(config_command, "config", "show", "--config", "copy.toml") == 0
    assert capsys.readouterr().out == shown
    assert "port = 9999" in shown
    assert list(elsewhere.iterdir()) == [elsewhere / "copy.toml"]


def test_config_show_hides_what_is_secret(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = "scrypt$16$8$1$c2FsdA==$" + "A" * 43 + "="
    monkeypatch.setenv("HILUM__STORAGE__DATABASE_URL", "postgresql://ada:secret@host/hilum?password=secret")
    monkeypatch.setenv("HILUM__WEB__USERNAME", "ada")
    monkeypatch.setenv("HILUM__WEB__PASSWORD_HASH", kept)
    for words in (["show"], ["show", "--json"]):
        assert run(config_command, "config", *words) == 0
        shown = capsys.readouterr().out
        assert "secret" not in shown
        assert kept not in shown
        assert "ada" in shown


def test_config_check_makes_nothing(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(config_command, "config", "check") == 0
    assert capsys.readouterr().out == "the settings can be used\n"
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ('[web]\nhost = "0.0.0.0"', UnauthenticatedBind),
        ('[storage]\nspool = "file/spool"', ConfigInvalid),
        ('[storage]\ndatabase_url = "sqlite:///file/hilum.db"', ConfigInvalid),
        ('[model]\npath = "nowhere"', ConfigInvalid),
    ],
)
def test_config_check_refuses_what_would_fail_later(elsewhere: Path, content: str, error: type[Exception]) -> None:
    (elsewhere / "file").write_text("no folder")
    (elsewhere / "hilum.toml").write_text(content)
    with pytest.raises(error):
        run(config_command, "config", "check", "--config", "hilum.toml")


def test_hash_password_reads_a_line_and_prints_its_hash(elsewhere: Path) -> None:
    done = hilum("config", "hash-password", folder=elsewhere, stdin="correct horse battery\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert password_matches("correct horse battery", done.stdout.strip())
    short = hilum("config", "hash-password", folder=elsewhere, stdin="short\n")
    assert (short.returncode, short.stdout) == (1, "")


def run(command: object, *words: str) -> int:
    """What the command returns, in this process."""
    code: int = command.run(build_parser(words).parse_args(words))  # type: ignore[attr-defined]
    return code
