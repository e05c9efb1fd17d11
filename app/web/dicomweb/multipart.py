"""Take multipart/related messages apart as they arrive, and put them together as they leave (RFC 2046, RFC 2387)."""

import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.message import Message

from app.web.errors import MultipartBroken

HEADER_BYTES_MAX = 16 << 10
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")  # RFC 2046 5.1.1


@dataclass(frozen=True, slots=True)
class ContentType:
    """A Content-Type header."""

    media_type: str  # in lower case
    parameters: dict[str, str]


@dataclass(frozen=True, slots=True)
class PartBegins:
    """The headers of the next part have come."""

    content_type: ContentType | None


@dataclass(frozen=True, slots=True)
class PartEnds:
    """The last byte of a part has come."""


def content_type(text: str) -> ContentType:
    """Read a Content-Type header."""
    message = Message()
    message["Content-Type"] = text
    parameters = {name.lower(): value for name, value in (message.get_params() or [])[1:]}
    return ContentType(message.get_content_type(), parameters)


def boundary_of(header: ContentType) -> bytes:
    """The boundary that a message announces. Raises MultipartBroken."""
    boundary = header.parameters.get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise MultipartBroken("the Content-Type header names no boundary, or one that RFC 2046 does not allow")
    return boundary.encode("ascii")


class MultipartReader:
    """Tells the parts of a message apart, whatever the pieces in which it arrives; holds no more than one piece."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._buffer = bytearray(b"\r\n")  # the first delimiter need not follow a line
        self._inside: str = "preamble"  # then "headers" and "content" in turn, and "epilogue"

    def feed(self, piece: bytes) -> Iterator[PartBegins | bytes | PartEnds]:
        """What the piece completes. Raises MultipartBroken."""
        self._buffer += piece
        while True:
            if self._inside == "epilogue":
                self._buffer.clear()
                return
            if self._inside == "headers":
                begins = self._headers()
                if begins is None:
                    return
                yield begins
                continue
            content, found = self._up_to_delimiter()
            if content and self._inside == "content":
                yield content
            if not found:
                return
            if self._inside == "content":
                yield PartEnds()
            self._inside = "delimiter"
            if not self._after_delimiter():
                return

    def close(self) -> None:
        """Raise MultipartBroken unless the closing delimiter has come."""
        if self._inside != "epilogue":
            raise MultipartBroken("the message ends before its closing boundary")

    def _up_to_delimiter(self) -> tuple[bytes, bool]:
        if self._inside == "delimiter":
            return b"", True
        at = self._buffer.find(self._delimiter)
        kept_back = len(self._delimiter) - 1  # a delimiter may begin in these
        end = at if at >= 0 else max(0, len(self._buffer) - kept_back)
        content = bytes(self._buffer[:end])
        del self._buffer[: end + (len(self._delimiter) if at >= 0 else 0)]
        return content, at >= 0

    def _after_delimiter(self) -> bool:
        """Settle what follows a delimiter; False where more must come first."""
        if len(self._buffer) < 2:
            return False
        if self._buffer.startswith(b"--"):
            self._inside = "epilogue"
            return True
        end = self._buffer.find(b"\r\n")
        if end < 0 and len(self._buffer) <= HEADER_BYTES_MAX:
            return False
        if end < 0 or self._buffer[:end].strip(b" \t"):
            raise MultipartBroken("a boundary is followed by something other than the end of its line")
        del self._buffer[:end]  # its own end stays: headers may be absent, and then an empty line follows at once
        self._inside = "headers"
        return True

    def _headers(self) -> PartBegins | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end > HEADER_BYTES_MAX or (end < 0 and len(self._buffer) > HEADER_BYTES_MAX):
            raise MultipartBroken(f"a part has more than {HEADER_BYTES_MAX} bytes of headers")
        if end < 0:
            return None
        lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        self._inside = "content"
        stated = [line.partition(":")[2] for line in lines if line.lower().startswith("content-type:")]
        return PartBegins(content_type(stated[0].strip()) if stated else None)


@dataclass(frozen=True, slots=True)
class Part:
    """One part of an answer."""

    content_type: str
    content: Iterable[bytes]
    size_bytes: int | None  # None where it is not known beforehand


def new_boundary() -> str:
    """One that no content holds but by a chance that does not happen."""
    return f"hilum-{secrets.token_hex(16)}"


def written(parts: Iterable[Part], *, boundary: str) -> Iterator[bytes]:
    """The bytes of a message, part by part."""
    for part in parts:
        yield _opening(part, boundary)
        yield from part.content
        yield b"\r\n"
    yield _closing(boundary)


def size_bytes(parts: Iterable[Part], *, boundary: str) -> int | None:
    """How long the message will be; None where the size of a part is not known."""
    total = len(_closing(boundary))
    for part in parts:
        if part.size_bytes is None:
            return None
        total += len(_opening(part, boundary)) + part.size_bytes + 2
    return total


def _opening(part: Part, boundary: str) -> bytes:
    length = "" if part.size_bytes is None else f"Content-Length: {part.size_bytes}\r\n"
    return f"--{boundary}\r\nContent-Type: {part.content_type}\r\n{length}\r\n".encode("ascii")


def _closing(boundary: str) -> bytes:
    return f"--{boundary}--\r\n".encode("ascii")
