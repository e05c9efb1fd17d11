"""Stand before every route, Gradio's and ours: who may ask, from where, and what the browser may do with the answer."""

import asyncio
import base64
import binascii
import hashlib
import ipaddress
import re
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.config import Token, Web
from app.identity import LOCAL_USER, Actor
from app.passwords import password_matches
from app.web.errors import HostRefused, LoginNeeded, NotAllowed, OriginRefused, answer

# What the page needs of Gradio. Its upload, file, proxy, stream and API routes are not among it, so that no image can
# reach Gradio's cache and no route beside ours answers.
GRADIO_PATHS = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/(assets|static|svelte)/.+|"
    r"/gradio_api/(queue/(join|data)|startup-events|heartbeat/[^/]+|theme\.css|reset|cancel)/?"
)
PROGRAMS_PATH = "/dicom-web/"
OUR_PATHS = ("/api/", "/hilum/", PROGRAMS_PATH)
INLINE_SCRIPT = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """ASGI middleware: host, login and origin before the request, headers on the answer."""

    def __init__(self, app: ASGIApp, *, web: Web, signed_in: Callable[[Actor], None]) -> None:
        self._app = app
        self._login = Login(web, signed_in=signed_in)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on with the actor in `request.state.actor`."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks WebSocket
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        path = _path(scope)
        try:
            if not self._login.required:
                check_host(headers.get("host", ""))
            actor = await self._login.actor(headers.get("authorization"))
            if scope["method"] not in SAFE_METHODS:
                check_origin(headers)
            if actor.kind == "ae" and not path.startswith(PROGRAMS_PATH):
                raise NotAllowed(f"{actor.name} is a program, and programs use {PROGRAMS_PATH}")
        except (HostRefused, LoginNeeded, NotAllowed, OriginRefused) as error:
            await _refusal(error)(scope, receive, _finishing(send, path))
            return
        if not (path.startswith(OUR_PATHS) or GRADIO_PATHS.fullmatch(path)):
            await JSONResponse({"detail": "Not Found"}, 404)(scope, receive, _finishing(send, path))
            return
        scope.setdefault("state", {})["actor"] = actor
        if path == "/":
            # The page is hashed as it is sent, so it must come uncompressed.
            scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"accept-encoding"]
            await self._app(scope, receive, _hashing(send))
        else:
            await self._app(scope, receive, _finishing(send, path))


class Login:
    """HTTP Basic for every route when a name and a password are configured; else everybody is the local user.

    Programs with a token are themselves in either case, and use DICOMweb only.
    """

    def __init__(self, web: Web, *, signed_in: Callable[[Actor], None]) -> None:
        self._username = web.username
        self._secrets = {name: (token.secret_hash, _program(name, token)) for name, token in web.tokens.items()}
        if web.username is not None and web.password_hash is not None:
            person = Actor(name=web.username, kind="user", roles=frozenset({"clinician", "administrator"}))
            self._secrets[web.username] = (web.password_hash, person)
        self._signed_in = signed_in
        self._known: dict[bytes, Actor] = {}  # by digests of headers that were right: scrypt is slow on purpose
        self._one_try_at_a_time = asyncio.Lock()  # so that guessing costs the guesser, not the server's memory

    @property
    def required(self) -> bool:
        """Whether visitors have to log in."""
        return self._username is not None

    async def actor(self, authorization: str | None) -> Actor:
        """Who sends this `Authorization` header. Raises LoginNeeded."""
        name, secret = _shown(authorization, login_required=self.required)
        if name is None:
            return LOCAL_USER
        digest = hashlib.sha256((authorization or "").encode("utf-8", "surrogateescape")).digest()
        if digest in self._known:
            return self._known[digest]
        if name not in self._secrets:
            raise LoginNeeded("the name or the password is wrong")
        secret_hash, actor = self._secrets[name]
        async with self._one_try_at_a_time:
            right = await asyncio.to_thread(password_matches, secret, secret_hash)
        if not right:
            raise LoginNeeded("the name or the password is wrong")
        await asyncio.to_thread(self._signed_in, actor)
        self._known[digest] = actor
        return actor


def check_host(host: str) -> None:
    """Without a login, answer to this machine's own names only; another means DNS rebinding. Raises HostRefused."""
    name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    try:
        local = ipaddress.ip_address(name).is_loopback
    except ValueError:
        local = name == "localhost" or name.endswith(".localhost")
    if not local:
        raise HostRefused(
            "without a login only localhost is served; set web.username and web.password_hash to use a name"
        )


def check_origin(headers: Headers) -> None:
    """Let a change through that our own page or a program asks for, never another site's page. Raises OriginRefused.

    Browsers send Sec-Fetch-Site to trustworthy addresses (also through a proxy that changes Host), and Origin always.
    """
    site = headers.get("sec-fetch-site")
    origin = headers.get("origin")
    if site is not None:
        allowed = site in {"same-origin", "none"}
    else:
        allowed = origin is None or urlsplit(origin).netloc == headers.get("host")
    if not allowed:
        raise OriginRefused("the request comes from another site")


def content_security_policy(script_hashes: Iterable[str] = ()) -> str:
    """Nothing from any other host, nothing evaluated, and of inline scripts only those that the page came with."""
    scripts = " ".join(["'self'", *(f"'sha256-{digest}'" for digest in script_hashes)])
    return (
        f"default-src 'self'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    )


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) or "/"


def _program(name: str, token: Token) -> Actor:
    return Actor(name=name, kind="ae", roles=frozenset(token.roles))


def _shown(authorization: str | None, *, login_required: bool) -> tuple[str | None, str]:
    """Name and secret of an `Authorization` header; no name for the local user. Raises LoginNeeded."""
    scheme, _, credentials = (authorization or "").partition(" ")
    if scheme.lower() == "bearer":  # RFC 6750
        name, _, secret = credentials.strip().partition(".")
        return name, secret
    if not login_required:
        return None, ""
    return _basic(authorization)


def _basic(authorization: str | None) -> tuple[str, str]:
    scheme, _, encoded = (authorization or "").partition(" ")
    try:
        text = base64.b64decode(encoded, validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError) as exc:
        raise LoginNeeded("the Authorization header cannot be read") from exc
    username, colon, password = text.partition(":")
    if scheme.lower() != "basic" or not colon:
        raise LoginNeeded("a name and a password are needed")
    return username, password


def _refusal(error: Exception) -> JSONResponse:
    status, body = answer(error)
    response = JSONResponse(body, status)
    if isinstance(error, LoginNeeded):
        response.headers["WWW-Authenticate"] = 'Basic realm="Hilum", charset="UTF-8"'
    return response


def _finishing(send: Send, path: str) -> Send:
    """Add the headers of every answer. What is not a file of the program itself is kept in no cache."""
    static = path.startswith(("/assets/", "/static/", "/svelte/"))

    async def finish(message: Message) -> None:
        if message["type"] == "http.response.start":
            _add_headers(message, content_security_policy(), store=static)
        await send(message)

    return finish


def _hashing(send: Send) -> Send:
    """Hold the page back until it is whole, and allow exactly its own inline scripts."""
    start: MutableMapping[str, Any] = {}
    parts: list[bytes] = []

    async def hold(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
            return
        if message["type"] != "http.response.body":
            await send(message)
            return
        parts.append(message.get("body", b""))
        if message.get("more_body"):
            return
        page = b"".join(parts)
        hashes = (base64.b64encode(hashlib.sha256(one).digest()).decode("ascii") for one in INLINE_SCRIPT.findall(page))
        _add_headers(start, content_security_policy(hashes), store=False)
        await send(start)
        await send({"type": "http.response.body", "body": page})

    return hold


def _add_headers(start: Message, policy: str, *, store: bool) -> None:
    headers = MutableHeaders(scope=start)
    headers.update(HEADERS)
    headers["Content-Security-Policy"] = policy
    if not store:
        headers["Cache-Control"] = "no-store"
    if "server" in headers:
        del headers["server"]
