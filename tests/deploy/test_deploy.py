"""What an administrator is given holds: settings, unit, images, Compose, instructions and the wheel."""

import configparser
import os
import re
import shlex
import subprocess
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # PyYAML comes with Gradio and without types
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.version import Version

from app.cli import COMMANDS, build_parser
from app.config import PREFIX, Settings, load, settings_keys
from app.db.migrate import migrations_folder
from app.errors import UnauthenticatedBind
from app.passwords import hash_password
from vision_model.manifest import GRAPH_NAME, MANIFEST_NAME
from vision_model.runtime import SHIPPED

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
README = (DEPLOY / "README.md").read_text("utf-8")
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")
CALL = re.compile(rf"\bhilum(?::cpu)? ((?:{'|'.join(COMMANDS)})\b[^|>)`\n]*)")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith(PREFIX):
            monkeypatch.delenv(name)


def test_example_settings_are_the_defaults() -> None:
    assert load(DEPLOY / "hilum.toml") == Settings()


def test_example_settings_name_every_setting() -> None:
    table, named = "", []
    for line in (DEPLOY / "hilum.toml").read_text("utf-8").splitlines():
        if found := re.fullmatch(r"\[([a-z.]+)\]", line):
            table = found[1]
        elif found := re.match(r"(?:# )?([a-z_]+) = ", line):
            named.append(f"{table}.{found[1]}")
    assert named == [key for key, _, _ in settings_keys()]


def test_example_tables_in_comments_load(tmp_path: Path) -> None:
    lines = (DEPLOY / "hilum.toml").read_text("utf-8").splitlines()
    shown = [line.removeprefix("#     ") for line in lines if line.startswith("#     ")]
    file = tmp_path / "hilum.toml"
    text = "\n".join(line for line in shown if line.startswith("[") or " = " in line)
    file.write_text(text.replace("scrypt$...", hash_password("correct horse battery")))
    settings = load(file)
    pacs = settings.pacs
    assert [*pacs.peers, *pacs.web_peers, *pacs.hl7_peers, *pacs.fhir_peers, *settings.web.tokens] == [
        "archive",
        "cloud",
        "ehr",
        "hub",
        "orchestrator",
    ]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", blocks("toml"))
def test_settings_of_the_instructions_load(block: str, tmp_path: Path) -> None:
    file = tmp_path / "hilum.toml"
    file.write_text(block.replace("PASSWORD_HASH", hash_password("correct horse battery")))
    load(file)


def test_settings_for_compose_let_the_container_listen(tmp_path: Path) -> None:
    file = tmp_path / "hilum.toml"
    (block,) = (block for block in blocks("toml") if "@database/" in block)
    with pytest.raises(UnauthenticatedBind):
        load(overrides={"web": {"host": "0.0.0.0"}})
    file.write_text(block.replace("PASSWORD_HASH", hash_password("correct horse battery")))
    assert load(file, overrides={"web": {"host": "0.0.0.0"}}).web.authenticated


def commands() -> list[str]:
    shell = [found for block in blocks("sh") for found in CALL.findall(block)]
    inline = [found for code in re.findall(r"`(hilum [^`]+)`", README) for found in CALL.findall(code)]
    unit = CALL.findall((DEPLOY / "hilum.service").read_text("utf-8"))
    return sorted({" ".join(found.split()) for found in shell + inline + unit})


def test_instructions_use_every_command_an_administrator_needs() -> None:
    verbs = {" ".join(command.split()[:2]) for command in commands()}
    assert {"config check", "config hash-password", "db upgrade", "db check", "audit verify", "model verify"} <= verbs


@pytest.mark.parametrize("command", commands())
def test_commands_of_the_instructions_exist(command: str) -> None:
    words = shlex.split(command)
    assert build_parser(words).parse_args(words).command == words[0]


def unit() -> dict[str, list[str]]:
    parsed: dict[str, list[str]] = {}
    for line in (DEPLOY / "hilum.service").read_text("utf-8").splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            parsed.setdefault(name, []).append(value)
    return parsed


def test_unit_has_the_sections_of_a_service() -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read(DEPLOY / "hilum.service")
    assert parser.sections() == ["Unit", "Service", "Install"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("User", "hilum"),
        ("StateDirectory", "hilum"),
        ("ProtectSystem", "strict"),
        ("NoNewPrivileges", "yes"),
        ("PrivateTmp", "yes"),
        ("CapabilityBoundingSet", ""),
        ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6"),
        ("IPAddressDeny", "any"),
        ("LimitCORE", "0"),
    ],
)
def test_unit_confines_the_service(name: str, value: str) -> None:
    assert unit()[name] == [value]


def test_unit_lets_decoding_processes_start_and_limit_themselves() -> None:
    denied = {group for line in unit()["SystemCallFilter"] if line.startswith("~") for group in line[1:].split()}
    # systemd's table of groups: setrlimit and sched_setaffinity are in @resources, fork and execve in @process.
    assert unit()["SystemCallFilter"][0] == "@system-service"
    assert not denied & {"@resources", "@process", "@ipc", "@sync"}


def test_unit_has_memory_for_the_default_decoding_processes() -> None:
    reading = Settings().reading
    (most,) = unit()["MemoryMax"]
    assert int(most.removesuffix("G")) << 30 >= reading.workers * reading.limits.memory_bytes + (2 << 30)


def stage(name: str) -> list[str]:
    text = re.split(r"^FROM ", DOCKERFILE.replace("\\\n", ""), flags=re.MULTILINE)
    (found,) = (part for part in text if re.match(rf"\S+ AS {name}\n", part))
    return [" ".join(line.split()) for line in found.splitlines()[1:] if line and not line.lstrip().startswith("#")]


def test_images_differ_in_base_and_provider_only() -> None:
    cpu, gpu = stage("cpu"), stage("gpu")
    assert set(gpu) - set(cpu) == {
        "COPY --from=gpu-environment /opt/hilum /opt/hilum",
        "ENV HILUM__MODEL__PROVIDER=cuda",
    }
    assert set(cpu) - set(gpu) == {
        "COPY --from=cpu-environment /opt/hilum /opt/hilum",
        "RUN python -m pip uninstall --yes wheel setuptools pip",
    }


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_images_run_without_privileges_and_report_to_nobody(name: str) -> None:
    lines = stage(name)
    assert "USER 10001:10001" in lines
    assert lines.index("USER 10001:10001") < lines.index('ENTRYPOINT ["hilum"]')
    assert any("ORT_DISABLE_TELEMETRY=1" in line for line in lines)


def test_build_context_has_what_the_dockerfile_copies() -> None:
    allowed = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    copies = re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    sources = {source for copy in copies for source in copy.split()}
    assert sources == allowed
    assert all((ROOT / source).exists() for source in sources)


def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    return parsed


def test_compose_holds_no_secret() -> None:
    text = (DEPLOY / "compose.yaml").read_text("utf-8")
    assert not re.search(r"(?i)password(?!_file)\w*[ \t]*[:=][ \t]*\S", text)
    assert "scrypt$" not in text
    ignored = subprocess.run(["git", "check-ignore", "--quiet", "deploy/secrets/hilum.toml"], cwd=ROOT, check=False)
    assert ignored.returncode == 0
    for secret in compose()["secrets"].values():
        assert secret["file"].startswith("./secrets/")


def test_compose_shows_the_page_on_loopback_and_the_database_nowhere() -> None:
    services, networks = compose()["services"], compose()["networks"]
    assert services["hilum"]["ports"] == ["127.0.0.1:7860:7860"]
    assert "ports" not in services["database"]
    assert services["database"]["networks"] == ["inside"]
    assert networks["inside"]["internal"] is True


def test_compose_waits_for_the_database_and_confines_the_service() -> None:
    services = compose()["services"]
    assert services["hilum"]["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert "healthcheck" in services["database"]
    assert services["hilum"]["read_only"] is True
    assert services["hilum"]["cap_drop"] == ["ALL"]


def test_compose_for_a_gpu_changes_the_service_only() -> None:
    parsed = yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text("utf-8"))
    assert set(parsed["services"]) == {"hilum"}
    assert parsed["services"]["hilum"]["build"] == {"target": "gpu"}


def test_constraints_are_versions_that_the_project_asks_for() -> None:
    lines = (DEPLOY / "constraints.txt").read_text("utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    asked = [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["postgresql"]]
    for requirement in asked:
        if requirement.name != "onnxruntime":  # for other platforms than the images'
            assert requirement.specifier.contains(Version(pinned[requirement.name])), requirement.name


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files of the wheel that this tree builds."""
    folder = tmp_path_factory.mktemp("wheel")
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(built) as wheel:
        return set(wheel.namelist())


def files_under(folder: Path, *, inside: str) -> set[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {f"{inside}/{path.relative_to(folder).as_posix()}" for path in paths}


@pytest.mark.parametrize(
    ("folder", "inside"),
    [
        (migrations_folder(), "app/migrations"),
        (ROOT / "app/web/assets", "app/web/assets"),
        (ROOT / "vision_model/recipes", "vision_model/recipes"),
    ],
)
def test_wheel_holds_what_is_no_code(folder: Path, inside: str, wheel_names: set[str]) -> None:
    expected = files_under(folder, inside=inside)
    assert expected
    assert expected <= wheel_names


def test_wheel_holds_the_model(wheel_names: set[str]) -> None:
    folder = f"vision_model/models/{SHIPPED}"
    assert {f"{folder}/{GRAPH_NAME}", f"{folder}/{MANIFEST_NAME}"} <= wheel_names
    assert files_under(ROOT / folder, inside=folder) <= wheel_names


def test_wheel_holds_the_pages_text_and_no_tests(wheel_names: set[str]) -> None:
    assert "app/web/help.md" in wheel_names
    assert not [name for name in wheel_names if name.startswith(("tests/", "deploy/", "var/"))]
