"""Passwords are kept as scrypt hashes that say how they were made."""

import base64
import hashlib

import pytest

from app.passwords import hash_password, password_matches, well_formed


def encoded(*, cost: int, block: int, parallel: int, salt: bytes, derived: bytes) -> str:
    parts = (base64.b64encode(part).decode() for part in (salt, derived))
    return "$".join(("scrypt", str(cost), str(block), str(parallel), *parts))


def test_a_password_matches_its_own_hash_only() -> None:
    kept = hash_password("correct horse battery")
    assert well_formed(kept)
    assert password_matches("correct horse battery", kept)
    assert not password_matches("correct horse batterY", kept)
    assert not password_matches("", kept)


def test_the_same_password_never_has_the_same_hash() -> None:
    assert hash_password("x") != hash_password("x")


def test_the_vector_of_rfc_7914_matches() -> None:
    # Section 12: scrypt("pleaseletmein", "SodiumChloride", N=16384, r=8, p=1).
    derived = bytes.fromhex(
        "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"
        "d5432955613f0fcf62d49705242a9af9e61e85dc0d651e40dfcf017b45575887"
    )
    kept = encoded(cost=16384, block=8, parallel=1, salt=b"SodiumChloride", derived=derived)
    assert password_matches("pleaseletmein", kept)
    assert not password_matches("pleaseletmeout", kept)


@pytest.mark.parametrize(
    "kept",
    [
        "",
        "secret",
        "scrypt$",
        hashlib.sha256(b"x").hexdigest(),
        encoded(cost=15, block=8, parallel=1, salt=b"0", derived=b"0" * 32),  # no power of two
        encoded(cost=2**24, block=8, parallel=1, salt=b"0", derived=b"0" * 32),  # 16 GiB a try
        encoded(cost=16, block=0, parallel=1, salt=b"0", derived=b"0" * 32),
        encoded(cost=16, block=8, parallel=0, salt=b"0", derived=b"0" * 32),
        encoded(cost=16, block=8, parallel=1, salt=b"0", derived=b"0" * 15),  # too short to be worth anything
        "scrypt$16$8$1$!!!$AAAA",
        "scrypt$16$8$1$A$A",
    ],
)
def test_what_is_no_hash_matches_nothing(kept: str) -> None:
    assert not well_formed(kept)
    assert not password_matches("", kept)
