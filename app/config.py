"""Read the settings: built-in defaults, then one TOML file, then HILUM__SECTION__KEY in the environment."""

import dataclasses
import difflib
import ipaddress
import os
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from app.errors import ConfigFileMissing, ConfigInvalid, ConfigUnknownKey, UnauthenticatedBind
from app.identity import Role
from app.passwords import well_formed
from dicom_io.limits import Limits

PREFIX = "HILUM__"
GIB = 1 << 30


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Section(BaseModel):
    """One table of the settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Storage(Section):
    """Where studies and predictions are kept. Relative paths start at the current folder."""

    database_url: str = Field(
        default="sqlite:///var/hilum.db", description="sqlite:///FILE or postgresql://USER@HOST/DATABASE"
    )
    spool: Path = Field(default=Path("var/spool"), description="folder of the received files")
    checkpoint: Path = Field(
        default=Path("var/audit-checkpoint.json"),
        description="outside head of the audit trail; copy it to another machine",
    )
    keep_free_bytes: int = Field(
        default=GIB, ge=0, description="refuse files that would leave less on the spool's disk"
    )


def _well_formed(password_hash: str) -> str:
    if not well_formed(password_hash):
        raise ValueError("is no scrypt hash; `hilum config hash-password` makes one")
    return password_hash


class Token(Section):
    """How one program shows who it is: it sends `Authorization: Bearer NAME.SECRET`."""

    secret_hash: Annotated[str, AfterValidator(_well_formed)] = Field(
        description="scrypt hash of the secret, from `hilum config hash-password`"
    )
    roles: tuple[Role, ...] = Field(
        default=(), description='"clinician": may search, retrieve and take work items; none: may only store'
    )


TokenName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class Web(Section):
    """The page, its API and DICOMweb."""

    host: str = Field(
        default="127.0.0.1", description="address to listen on; any but loopback needs a username and password"
    )
    port: int = Field(default=7860, ge=0, le=65535, description="0 takes a free one")
    root_path: str = Field(
        default="", pattern=r"^(/[\w.~-]+)*$", description="prefix under which a reverse proxy shows the page"
    )
    max_upload_bytes: int = Field(default=4 * GIB, gt=0, description="largest single upload")
    username: str | None = Field(
        default=None, min_length=1, description="who may log in; none: the local user, without login"
    )
    password_hash: Annotated[str, AfterValidator(_well_formed)] | None = Field(
        default=None, description="scrypt hash, from `hilum config hash-password`"
    )

    public_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/?#]+(/[\w.~-]+)*$",
        description="how others reach the page, for the URLs in DICOMweb's answers; none: as they asked",
    )
    tokens: dict[TokenName, Token] = Field(default={}, description="programs that may use DICOMweb, by name")

    @property
    def authenticated(self) -> bool:
        """Whether visitors have to log in."""
        return self.username is not None and self.password_hash is not None

    @model_validator(mode="after")
    def _nobody_unknown_from_outside(self) -> "Web":
        if (self.username is None) != (self.password_hash is None):
            raise ValueError("username and password_hash are set both or neither")
        if not self.authenticated and not _is_loopback(self.host):
            raise UnauthenticatedBind(self.host)
        return self


class Model(Section):
    """Which model answers, and on what."""

    path: Path | None = Field(default=None, description="folder of a model; none: the one that ships")
    provider: Literal["cpu", "cuda", "tensorrt"] = Field(default="cpu", description="never replaced by another quietly")
    precision: Literal["fp32", "fp16-stored", "int8", "int8-stored"] | None = Field(
        default=None, description="none: what the model is meant to answer with"
    )
    threads: int = Field(
        default=0, ge=0, description="of the model on a CPU, for one image or several; 0: one for each core"
    )
    engine_cache: Path | None = Field(default=None, description="folder where TensorRT keeps what it built")
    warm_up: bool = Field(default=True, description="run the model once before the first request")


def _positive(limits: Limits) -> Limits:
    for field in dataclasses.fields(limits):
        if getattr(limits, field.name) <= 0:
            raise ValueError(f"{field.name} must be greater than 0")
    return limits


class Reading(Section):
    """How received files are read, in processes of their own."""

    workers: int = Field(default=2, ge=1, le=64, description="decoding processes")
    limits: Annotated[Limits, AfterValidator(_positive)] = Field(
        default_factory=Limits, description="caps that hold before anything is parsed, inflated or allocated"
    )


class Diagnose(Section):
    """How much is predicted at a time."""

    batch_size: int = Field(default=8, ge=1, le=256, description="images in one run of the model")
    frames_per_series: int = Field(default=64, ge=1, description="more are sampled evenly over the series")


ResultKind = Literal["sr", "parametric-map", "secondary-capture", "key-objects"]


class Peer(Section):
    """Another application that is spoken to by name."""

    ae_title: str = Field(min_length=1, max_length=16, description="its AE title")
    host: str = Field(min_length=1, description="its address")
    port: int = Field(ge=1, le=65535, description="its TCP port")
    tls: bool = Field(default=False, description="speak DICOM TLS with it, by this section's own certificates")
    deliver: tuple[ResultKind, ...] = Field(
        default=(), description="results of each diagnosed study that are sent there"
    )
    move_ae_title: str | None = Field(
        default=None,
        min_length=1,
        max_length=16,
        description="fetch from it by C-MOVE to this title of ours, which it knows; none: by C-GET",
    )
    move_port: int = Field(default=11113, ge=1, le=65535, description="where it reaches that title")


class _WebService(Section):
    """Who lets us in over HTTP, and whom we trust there."""

    token: str | None = Field(default=None, min_length=1, repr=False, description="bearer token; or username, password")
    username: str | None = Field(default=None, min_length=1, description="for HTTP's basic authentication")
    password: str | None = Field(default=None, repr=False, description="for HTTP's basic authentication")
    ca: Path | None = Field(default=None, description="PEM file of whom we trust there; none: the usual authorities")

    @model_validator(mode="after")
    def _one_way_in(self) -> "_WebService":
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password are set both or neither")
        if self.token is not None and self.username is not None:
            raise ValueError("either token, or username and password")
        return self


class WebPeer(_WebService):
    """A DICOMweb service that is spoken to by name."""

    url: str = Field(pattern=r"^https?://", description="address of the service; /studies comes behind it")
    deliver: tuple[ResultKind, ...] = Field(
        default=(), description="results of each diagnosed study that are sent there"
    )


class Hl7Peer(Section):
    """A system that takes the findings of each diagnosed study as an HL7 v2 message, over MLLP."""

    host: str = Field(min_length=1, description="its address")
    port: int = Field(default=2575, ge=1, le=65535, description="its TCP port")
    tls: bool = Field(default=False, description="speak TLS with it, by this section's own certificates")
    sending_facility: str = Field(default="", description="MSH-4: who we are to it")
    receiving_application: str = Field(default="", description="MSH-5: what it calls itself")


class FhirPeer(_WebService):
    """A FHIR server that takes the findings of each diagnosed study as a transaction."""

    url: str = Field(pattern=r"^https?://", description="base address of the server")


class Pacs(Section):
    """The DICOM network: who we are, who may send, and where results go."""

    ae_title: str = Field(default="HILUM", min_length=1, max_length=16, description="our AE title")
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int | None = Field(
        default=None, ge=0, le=65535, description="TCP port to listen on, 104 and 11112 are usual; none: do not listen"
    )
    calling_ae_titles: tuple[str, ...] = Field(
        default=(), description="AE titles that may send, besides those of the peers; anybody else is refused"
    )
    any_calling_ae_title: bool = Field(default=False, description="take files from whoever knows our AE title")
    tls_certificate: Path | None = Field(
        default=None, description="PEM file of our certificate; with it, TLS is spoken"
    )
    tls_key: Path | None = Field(default=None, description="PEM file of its private key")
    tls_ca: Path | None = Field(
        default=None, description="PEM file of whom we trust; with it, callers need a certificate"
    )
    maximum_associations: int = Field(default=100, ge=1, description="open at a time")
    maximum_associations_per_host: int = Field(default=25, ge=1, description="open at a time from one address")
    maximum_pdu_bytes: int = Field(default=131_072, ge=4096, le=4_194_304, description="largest message part taken")
    greeting_seconds: float = Field(default=10.0, gt=0, description="for a caller to say who it is")
    idle_seconds: float = Field(default=30.0, gt=0, description="of silence before an association is closed")
    quiet_seconds: float = Field(
        default=60.0, gt=0, description="after its last image a study counts as complete and is diagnosed"
    )
    head_start_seconds: float = Field(
        default=0.0, ge=0, description="a work item is left to other applications (UPS-RS) before our worker takes it"
    )
    outside_hold_seconds: float = Field(
        default=3600.0, gt=0, description="of silence after which a work item that another application holds is ours"
    )
    peers: dict[str, Peer] = Field(default={}, description="the applications we speak to, by the names we give them")
    web_peers: dict[str, WebPeer] = Field(default={}, description="the DICOMweb services we speak to, by our names")
    hl7_peers: dict[str, Hl7Peer] = Field(default={}, description="the HL7 v2 systems that take findings, by our names")
    fhir_peers: dict[str, FhirPeer] = Field(default={}, description="the FHIR servers that take findings, by our names")

    @model_validator(mode="after")
    def _a_key_for_the_certificate(self) -> "Pacs":
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key are set both or neither")
        if self.tls_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_ca needs tls_certificate and tls_key beside it")
        return self

    @model_validator(mode="after")
    def _a_name_for_each(self) -> "Pacs":
        names = Counter([*self.peers, *self.web_peers, *self.hl7_peers, *self.fhir_peers])
        if twice := sorted(name for name, count in names.items() if count > 1):
            raise ValueError(f"{twice[0]} names more than one peer")
        return self

    @model_validator(mode="after")
    def _what_they_need_is_installed(self) -> "Pacs":
        for peers, extra, module in ((self.hl7_peers, "hl7", "hl7apy"), (self.fhir_peers, "fhir", "fhir")):
            if peers and find_spec(module) is None:
                raise ValueError(f"{extra}_peers need more software: pip install 'hilum[{extra}]'")
        return self

    @property
    def callers(self) -> frozenset[str] | None:
        """AE titles that may call; None: all."""
        if self.any_calling_ae_title:
            return None
        return frozenset(self.calling_ae_titles) | {peer.ae_title for peer in self.peers.values()}


class Settings(BaseSettings):
    """Everything that can be set. Frozen: a change is a restart.

    Called by itself it knows the defaults only; `load` reads the file and the environment.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=PREFIX, env_nested_delimiter="__", env_ignore_empty=True
    )

    storage: Storage = Storage()
    web: Web = Web()
    model: Model = Model()
    reading: Reading = Reading()
    diagnose: Diagnose = Diagnose()
    pacs: Pacs = Pacs()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 (pydantic-settings' signature)
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed in: `load` decides what goes over what."""
        return (init_settings,)


def load(path: Path | None = None, *, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> Settings:
    """The settings of a TOML file and the environment; `overrides` (section -> key -> value) go over both.

    Raises ConfigFileMissing, ConfigUnknownKey, ConfigInvalid and UnauthenticatedBind, each naming the key.
    """
    written = _toml(path) if path else {}
    _refuse_unknown(written, source=str(path))
    for name in sorted(os.environ):
        if name.upper().startswith(PREFIX):
            keys = name[len(PREFIX) :].lower().split("__")
            _refuse_unknown(_nested(keys), source="the environment")
    try:
        environment = EnvSettingsSource(Settings)()
        return Settings(**_merged(_merged(written, environment), overrides or {}))
    except ValidationError as exc:
        raise _as_config_error(exc) from exc
    except SettingsError as exc:
        raise ConfigInvalid(f"{exc}; give each key its own variable, {PREFIX}WEB__PORT for example") from exc


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ConfigFileMissing(path) from exc
    except OSError as exc:
        raise ConfigInvalid(f"{path} cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise ConfigInvalid(f"{path} is no TOML: {exc}") from exc


def _nested(keys: list[str]) -> dict[str, Any]:
    head, *rest = keys
    return {head: _nested(rest) if rest else None}


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(under)
    for key, value in over.items():
        beneath = both.get(key)
        both[key] = _merged(beneath, value) if isinstance(beneath, Mapping) and isinstance(value, Mapping) else value
    return both


def _refuse_unknown(given: Mapping[str, Any], *, source: str) -> None:
    known = {key for key, _, _ in settings_keys()}
    for key in _leaves(given):
        if key in known or any(one.startswith(f"{key}.") for one in known):
            continue
        if f"{key}.".startswith(_named()):  # they bear any name; pydantic refuses what one of them has too much
            continue
        nearest = difflib.get_close_matches(key, sorted(known), n=1)
        raise ConfigUnknownKey(key, source=source, nearest=nearest[0] if nearest else None)


def _named() -> tuple[str, ...]:
    """Tables of tables, whose names are the site's own: "pacs.peers."."""
    defaults = Settings()
    return tuple(
        f"{section}.{name}."
        for section in Settings.model_fields
        for name, value in getattr(defaults, section)
        if isinstance(value, dict)
    )


def _leaves(given: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in given.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def settings_keys(settings: Settings | None = None) -> Iterator[tuple[str, Any, str | None]]:
    """Every key with its value and what it means: ("web.port", 7860, "0 takes a free one")."""
    chosen = settings or Settings()
    for section_name in Settings.model_fields:
        section = getattr(chosen, section_name)
        for name, field in type(section).model_fields.items():
            value = getattr(section, name)
            if isinstance(value, dict):
                for own_name, table in value.items():
                    for key, own_field in type(table).model_fields.items():
                        yield f"{section_name}.{name}.{own_name}.{key}", getattr(table, key), own_field.description
            elif isinstance(value, Limits):
                for limit in dataclasses.fields(value):
                    yield f"{section_name}.{name}.{limit.name}", getattr(value, limit.name), None
            else:
                yield f"{section_name}.{name}", value, field.description


def _as_config_error(error: ValidationError) -> ConfigInvalid | ConfigUnknownKey:
    """Name the keys and what is wrong with them, never their values: a password may be among them."""
    sentences = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
            return ConfigUnknownKey(key, source="a setting", nearest=None)
        sentences.append(f"{key}: {problem['msg'].removeprefix('Value error, ')}")
    return ConfigInvalid("; ".join(sentences))
