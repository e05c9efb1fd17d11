"""Speak DICOMweb to an archive: QIDO-RS, WADO-RS and STOW-RS (PS3.18 chapter 10), over httpx."""

import json
import re
import secrets
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx
from pydicom import Dataset
from python_multipart.multipart import MultipartParser

from dicom_io.archive import Match, Query, Stored, keep, match
from dicom_io.errors import PeerAnswerInvalid, PeerHasNot, PeerRefused, PeerUnreachable

ANSWER_SECONDS = 30.0
PAGE = 100  # matches that are asked for at a time
LARGEST_ANSWER_BYTES = 64 << 20  # of one page of matches, or of what is said to a stored file
CHUNK_BYTES = 1 << 20
LEVELS = {"STUDY": "studies", "SERIES": "series", "IMAGE": "instances"}


@dataclass(frozen=True, slots=True)
class WebRemote:
    """Where a DICOMweb service is, and what lets us in."""

    name: str  # what messages call it
    url: str  # of the service; /studies comes behind it
    authorisation: str | None = field(default=None, repr=False)  # value of that header, such as `Bearer ...`
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class WebArchive:
    """An archive that speaks DICOMweb; see `archive.Archive`."""

    remote: WebRemote

    def echo(self) -> None:
        """As Archive: a search for at most one study, since DICOMweb has no echo."""
        with self._client() as client:
            self._page(client, "studies", {"limit": "1"})

    def find(self, query: Query) -> Iterator[Match]:
        """As Archive: QIDO-RS, page after page."""
        keys = query.keys()
        path = LEVELS[query.level]
        # The UIDs above the level go into the path where they are known, which every service understands.
        for parent, keyword in (("series", "SeriesInstanceUID"), ("studies", "StudyInstanceUID")):
            if path != parent and keys.get(keyword) and (parent == "studies" or keys.get("StudyInstanceUID")):
                path = f"{parent}/{keys[keyword].value}/{path}"
                del keys[keyword]
        wanted = {e.keyword: str(e.value) for e in keys if not e.is_empty}
        fields = [e.keyword for e in keys if e.is_empty]
        seen: set[tuple[str | None, ...]] = set()
        with self._client() as client:
            while True:
                page = self._page(
                    client,
                    path,
                    {**wanted, "includefield": fields, "limit": str(PAGE), "offset": str(len(seen))},
                )
                known = len(seen)
                for found in page:
                    one = match(_data_set(found), query.level)
                    uids = (one.study_instance_uid, one.series_instance_uid, one.sop_instance_uid)
                    if uids not in seen:
                        seen.add(uids)
                        yield one
                # Some services give all at once, or the same page again, whatever offset they are asked for.
                if len(page) != PAGE or len(seen) == known:
                    return

    def fetch(self, instances: Sequence[Match], folder: Path) -> Iterator[Path]:
        """As Archive: WADO-RS, an instance at a time, in the transfer syntax that it is kept in."""
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        with self._client() as client:
            for one in instances:
                series = f"studies/{one.study_instance_uid}/series/{one.series_instance_uid}"
                path = f"{series}/instances/{one.sop_instance_uid}"
                try:
                    with self._answer(client, "GET", path, headers={"Accept": accept}) as answer:
                        yield keep(_only_part(answer), folder, named=one.sop_instance_uid)
                except PeerHasNot:
                    continue

    def store(self, paths: Sequence[Path]) -> Iterator[Stored]:
        """As Archive: STOW-RS, a file at a time."""
        with self._client() as client:
            for path in paths:
                boundary = secrets.token_hex(16)
                headers = {
                    "Accept": "application/dicom+json",
                    "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
                }
                with self._answer(
                    client, "POST", "studies", headers=headers, content=_message(path, boundary), allowed=(202, 409)
                ) as answer:
                    yield _stored(path, answer)

    def _client(self) -> httpx.Client:
        headers = {"Accept-Encoding": "identity"}  # nothing that could inflate without end
        if self.remote.authorisation is not None:
            headers["Authorization"] = self.remote.authorisation
        return httpx.Client(
            base_url=self.remote.url.rstrip("/") + "/",
            headers=headers,
            timeout=ANSWER_SECONDS,
            follow_redirects=False,  # patient data goes to the named service only
            trust_env=False,
            verify=self.remote.tls if self.remote.tls is not None else True,
        )

    def _page(self, client: httpx.Client, path: str, parameters: Mapping[str, str | list[str]]) -> list[Any]:
        headers = {"Accept": "application/dicom+json"}
        # Wildcards stay as they are, as a query may have them: Orthanc does not take them out of percent signs.
        query = urlencode(parameters, doseq=True, safe="*?", quote_via=quote)
        with self._answer(client, "GET", f"{path}?{query}", headers=headers) as answer:
            if answer.status_code == httpx.codes.NO_CONTENT:
                return []
            found = _json(answer)
        if not isinstance(found, list):
            raise PeerAnswerInvalid("the answer to a search is no list")
        return found

    @contextmanager
    def _answer(
        self, client: httpx.Client, method: str, path: str, *, allowed: Sequence[int] = (), **request: Any
    ) -> Iterator[httpx.Response]:
        try:
            with client.stream(method, path, **request) as answer:
                status = answer.status_code
                if status in {httpx.codes.NOT_FOUND, httpx.codes.GONE}:
                    raise PeerHasNot(f"{self.remote.name} has no such thing, or no DICOMweb under this address")
                if status in {httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE}:
                    raise PeerUnreachable(self.remote.name)
                if not answer.is_success and status not in allowed:
                    raise PeerRefused(f"{method} {re.split('[/?]', path)[0]}", f"HTTP {status}")
                yield answer
        except httpx.HTTPError as exc:
            raise PeerUnreachable(self.remote.name) from exc


def _json(answer: httpx.Response) -> Any:
    body = bytearray()
    for chunk in answer.iter_bytes(CHUNK_BYTES):
        body += chunk
        if len(body) > LARGEST_ANSWER_BYTES:
            raise PeerAnswerInvalid(f"an answer has more than {LARGEST_ANSWER_BYTES >> 20} MiB")
    try:
        return json.loads(body)
    except ValueError as exc:
        raise PeerAnswerInvalid("an answer is no JSON") from exc


def _data_set(found: Any) -> Dataset:
    try:
        return Dataset.from_json(found)
    except Exception as exc:  # whatever pydicom makes of JSON from elsewhere
        raise PeerAnswerInvalid(f"an answer is no data set ({type(exc).__name__})") from exc


def _only_part(answer: httpx.Response) -> Iterator[bytes]:
    """The body of the first part of a multipart/related answer. Raises PeerAnswerInvalid."""
    header = Message()
    header["Content-Type"] = answer.headers.get("Content-Type", "")
    boundary = header.get_boundary()
    if header.get_content_type() != "multipart/related" or boundary is None:
        raise PeerAnswerInvalid("an instance came in something else than multipart/related")
    chunks: list[bytes] = []
    ended: list[int] = []

    def data(content: bytes, start: int, end: int) -> None:
        if not ended:
            chunks.append(content[start:end])

    parser = MultipartParser(boundary.encode(), {"on_part_data": data, "on_part_end": lambda: ended.append(1)})
    try:
        for chunk in answer.iter_bytes(CHUNK_BYTES):
            parser.write(chunk)
            yield from chunks
            chunks.clear()
    except ValueError as exc:
        raise PeerAnswerInvalid("an instance came in a broken multipart message") from exc
    if not ended:
        raise PeerAnswerInvalid("the answer ended before the instance did")


def _message(path: Path, boundary: str) -> Iterator[bytes]:
    yield f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
    yield f"\r\n--{boundary}--\r\n".encode()


def _stored(path: Path, answer: httpx.Response) -> Stored:
    """What the Store Instances Response Module says of the one instance (PS3.18 Annex I)."""
    if not re.match(r"application/(dicom\+)?json", answer.headers.get("Content-Type", "")):
        return Stored(path, "stored" if answer.is_success else "refused", f"HTTP {answer.status_code}")
    said = _data_set(_json(answer))
    for failed in said.get("FailedSOPSequence") or ():
        return Stored(path, "refused", f"reason 0x{int(failed.get('FailureReason') or 0):04X}")
    for stored in said.get("ReferencedSOPSequence") or ():
        if warning := stored.get("WarningReason"):
            return Stored(path, "warning", f"reason 0x{int(warning):04X}")
        return Stored(path, "stored", f"HTTP {answer.status_code}")
    raise PeerAnswerInvalid("the answer to a stored instance names none")
