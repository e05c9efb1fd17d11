"""A message is told apart the same way however it is cut up on its way."""

import pytest
from hypothesis import given
from hypothesis.strategies import binary, integers, lists

from app.web.dicomweb.multipart import (
    ContentType,
    MultipartReader,
    Part,
    PartBegins,
    PartEnds,
    boundary_of,
    content_type,
    size_bytes,
    written,
)
from app.web.errors import MultipartBroken

# RFC 2046 5.1.1, its own example of a message, with a preamble, an epilogue and a part without headers.
EXAMPLE = (
    b"This is the preamble.  It is to be ignored, though it\r\n"
    b"is a handy place for composition agents.\r\n"
    b"\r\n"
    b"--simple boundary\r\n"
    b"\r\n"
    b"This is implicitly typed plain US-ASCII text.\r\n"
    b"It does NOT end with a linebreak.\r\n"
    b"--simple boundary\r\n"
    b"Content-type: text/plain; charset=us-ascii\r\n"
    b"\r\n"
    b"This is explicitly typed plain US-ASCII text.\r\n"
    b"It DOES end with a linebreak.\r\n"
    b"\r\n"
    b"--simple boundary--\r\n"
    b"\r\n"
    b"This is the epilogue.  It is also to be ignored.\r\n"
)


def contents(message: bytes, boundary: bytes, cut: int) -> list[tuple[str | None, bytes]]:
    """Media type and content of each part, with the message arriving in pieces of `cut` bytes."""
    reader = MultipartReader(boundary)
    found: list[tuple[str | None, bytes]] = []
    open_parts = 0
    for start in range(0, len(message), cut):
        for event in reader.feed(message[start : start + cut]):
            if isinstance(event, PartBegins):
                found.append((event.content_type.media_type if event.content_type else None, b""))
                open_parts += 1
            elif isinstance(event, PartEnds):
                open_parts -= 1
            else:
                kind, before = found[-1]
                found[-1] = (kind, before + event)
    reader.close()
    assert open_parts == 0
    return found


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 64, 10_000])
def test_the_example_of_the_rfc_has_its_two_parts(cut: int) -> None:
    assert contents(EXAMPLE, b"simple boundary", cut) == [
        (None, b"This is implicitly typed plain US-ASCII text.\r\nIt does NOT end with a linebreak."),
        ("text/plain", b"This is explicitly typed plain US-ASCII text.\r\nIt DOES end with a linebreak.\r\n"),
    ]


@given(parts=lists(binary(max_size=60), min_size=1, max_size=4), cut=integers(1, 40))
def test_what_is_written_is_read_back(parts: list[bytes], cut: int) -> None:
    made = [Part("application/dicom", [content], len(content)) for content in parts]
    message = b"".join(written(made, boundary="q"))
    assert len(message) == size_bytes(made, boundary="q")
    if any(b"\r\n--q" in content or content.startswith(b"--q") for content in parts):
        return
    assert contents(message, b"q", cut) == [("application/dicom", content) for content in parts]


@pytest.mark.parametrize("end", range(1, EXAMPLE.index(b"boundary--") + len(b"boundary--"), 3))
def test_a_message_that_is_cut_off_anywhere_is_not_whole(end: int) -> None:
    with pytest.raises(MultipartBroken):
        contents(EXAMPLE[:end], b"simple boundary", 50)


@pytest.mark.parametrize("boundary", ["", "a b ", "ä", "x" * 71, "a\r\nb", 'a"b'])
def test_a_boundary_that_is_not_allowed_is_refused(boundary: str) -> None:
    with pytest.raises(MultipartBroken):
        boundary_of(ContentType("multipart/related", {"boundary": boundary}))


def test_a_content_type_is_read_with_its_quotes_and_cases() -> None:
    header = content_type('Multipart/Related; TYPE="application/dicom"; boundary="a b;c"')
    assert header.media_type == "multipart/related"
    assert header.parameters == {"type": "application/dicom", "boundary": "a b;c"}
