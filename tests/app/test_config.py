"""Settings come from one file and the environment, and what cannot be right is refused by its key."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from app import config
from app.errors import ConfigError, ConfigFileMissing, ConfigInvalid, ConfigUnknownKey, UnauthenticatedBind
from app.passwords import hash_password
from dicom_io.limits import Limits

HASH = hash_password("correct horse battery", salt=b"0" * 16)


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.upper().startswith(config.PREFIX):
            monkeypatch.delenv(name)


def written(folder: Path, content: str) -> Path:
    path = folder / "hilum.toml"
    path.write_text(content, encoding="utf-8")
    return path


def test_the_defaults_keep_everything_local() -> None:
    settings = config.load()
    assert settings == config.Settings()
    assert settings.web.host == "127.0.0.1"
    assert settings.storage.database_url == "sqlite:///var/hilum.db"
    assert settings.reading.limits == Limits()
    assert not settings.web.authenticated


def test_the_environment_goes_over_the_file_and_the_command_line_over_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "[web]\nport = 1\nroot_path = '/a'\n[reading.limits]\nwall_seconds = 3\nfile_bytes = 7\n")
    monkeypatch.setenv("HILUM__WEB__PORT", "2")
    monkeypatch.setenv("HILUM__READING__LIMITS__FILE_BYTES", "8")
    settings = config.load(path)
    assert (settings.web.port, settings.web.root_path) == (2, "/a")
    assert settings.reading.limits == Limits(file_bytes=8, wall_seconds=3.0)
    assert config.load(path, overrides={"web": {"port": 3}}).web.port == 3


def test_an_empty_variable_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HILUM__WEB__USERNAME", "")
    assert config.load().web.username is None


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        config.load().web.port = 1


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("[web]\nprot = 1", "web.prot"),
        ("[wep]\nport = 1", "wep.port"),
        ("port = 1", "port"),
        ("[reading.limits]\nfile_byte = 1", "reading.limits.file_byte"),
        ("[storage.deep]\nspool = 'x'", "storage.deep.spool"),
    ],
)
def test_an_unknown_key_in_the_file_is_named(tmp_path: Path, content: str, key: str) -> None:
    with pytest.raises(ConfigUnknownKey, match=r"hilum\.toml") as caught:
        config.load(written(tmp_path, content))
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("HILUM__WEB__PROT", "1", "web.prot"),
        ("HILUM__PACS__AET", "X", "pacs.aet"),
        ("hilum__storage__spoool", "X", "storage.spoool"),
        ("HILUM__WEB", '{"prot": 1}', "web.prot"),
    ],
)
def test_an_unknown_key_in_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, key: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigUnknownKey) as caught:
        config.load()
    assert caught.value.key == key


def test_a_misspelt_key_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigUnknownKey, match=r"did you mean web\.port\?"):
        config.load(written(tmp_path, "[web]\nprt = 1"))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[web]\nport = 70000", r"web\.port"),
        ("[web]\nport = 'many'", r"web\.port"),
        ("[web]\nroot_path = 'no-slash'", r"web\.root_path"),
        ("[web]\nmax_upload_bytes = 0", r"web\.max_upload_bytes"),
        ("[model]\nprovider = 'abacus'", r"model\.provider"),
        ("[reading]\nworkers = 0", r"reading\.workers"),
        ("[reading.limits]\ncpu_seconds = -1", r"reading\.limits: cpu_seconds"),
        ("[web]\nusername = 'ada'", "both or neither"),
        ("web = 3", "web"),
        ("[web", "no TOML"),
        ("\ufeff[web]\nport = 1 # \x01", "no TOML"),
    ],
)
def test_a_value_that_cannot_be_is_named(tmp_path: Path, content: str, named: str) -> None:
    with pytest.raises(ConfigInvalid, match=named):
        config.load(written(tmp_path, content))


def test_a_section_in_the_environment_that_is_no_json_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HILUM__WEB", "{")
    with pytest.raises(ConfigInvalid, match="web"):
        config.load()


def test_a_refused_value_is_not_repeated(tmp_path: Path) -> None:
    path = written(tmp_path, "[web]\nusername = 'ada'\npassword_hash = 'my-clear-password'")
    with pytest.raises(ConfigInvalid) as caught:
        config.load(path)
    assert "my-clear-password" not in str(caught.value)
    assert "hash-password" in str(caught.value)


def test_a_missing_file_is_an_error_and_not_the_defaults(tmp_path: Path) -> None:
    with pytest.raises(ConfigFileMissing, match="nothing-here"):
        config.load(tmp_path / "nothing-here.toml")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "hospital.example", "127.0.0.1.example"])
def test_other_machines_are_let_in_only_with_a_login(host: str) -> None:
    with pytest.raises(UnauthenticatedBind, match="hash-password"):
        config.load(overrides={"web": {"host": host}})
    known = {"host": host, "username": "ada", "password_hash": HASH}
    assert config.load(overrides={"web": known}).web.authenticated


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_loopback_needs_no_login(host: str) -> None:
    assert config.load(overrides={"web": {"host": host}}).web.host == host


def test_peers_bear_any_name_and_their_keys_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "hilum.toml"
    peer = '[pacs.peers.archive]\nae_title = "ORTHANC"\nhost = "10.1.2.3"\nport = 4242\n'
    file.write_text(f'{peer}deliver = ["sr"]\n[pacs]\ncalling_ae_titles = ["CT1"]\n')
    settings = config.load(file)
    assert settings.pacs.callers == frozenset({"ORTHANC", "CT1"})
    assert ("pacs.peers.archive.port", 4242) in [(key, value) for key, value, _ in config.settings_keys(settings)]
    file.write_text(f"{peer}prot = 1\n")
    with pytest.raises(ConfigUnknownKey, match=r"pacs\.peers\.archive\.prot"):
        config.load(file)
    file.write_text('[pacs]\ntls_certificate = "mine.pem"\n')
    with pytest.raises(ConfigInvalid, match="tls_key"):
        config.load(file)


def test_peers_can_be_named_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HILUM__PACS__PEERS", '{"archive": {"ae_title": "ORTHANC", "host": "10.1.2.3", "port": 4242}}')
    monkeypatch.setenv("HILUM__PACS__PEERS__ARCHIVE__PORT", "104")
    assert config.load().pacs.peers["archive"].port == 104
    monkeypatch.setenv("HILUM__PACS__PEERS__ARCHIVE__PROT", "104")
    with pytest.raises(ConfigUnknownKey, match=r"pacs\.peers\.archive\.prot"):
        config.load()


def test_programs_bear_any_name_that_can_stand_in_a_token(tmp_path: Path) -> None:
    file = tmp_path / "hilum.toml"
    file.write_text(f'[web.tokens.orchestrator]\nsecret_hash = "{HASH}"\nroles = ["clinician"]\n')
    settings = config.load(file)
    assert settings.web.tokens["orchestrator"].roles == ("clinician",)
    assert ("web.tokens.orchestrator.roles", ("clinician",)) in [
        (key, value) for key, value, _ in config.settings_keys(settings)
    ]
    file.write_text(f'[web.tokens."a.b"]\nsecret_hash = "{HASH}"\n')
    with pytest.raises(ConfigInvalid, match="tokens"):
        config.load(file)
    file.write_text('[web.tokens.a]\nsecret_hash = "my-clear-secret"\n')
    with pytest.raises(ConfigInvalid, match="hash-password") as caught:
        config.load(file)
    assert "my-clear-secret" not in str(caught.value)
    file.write_text(f'[web.tokens.a]\nsecret_hash = "{HASH}"\nroels = []\n')
    with pytest.raises(ConfigUnknownKey, match=r"web\.tokens\.a\.roels"):
        config.load(file)


def test_every_setting_says_what_it_means() -> None:
    for key, _, meaning in config.settings_keys():
        assert meaning or key.startswith("reading.limits.")  # those are explained beside their definition


def test_every_error_of_the_settings_has_its_own_code() -> None:
    codes = [error.code for error in ConfigError.__subclasses__()]
    assert len(set(codes)) == len(codes)
    assert all(code.startswith("config.") for code in codes)
