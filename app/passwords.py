"""Keep passwords as salted scrypt hashes (RFC 7914) that travel in one line of text."""

import base64
import hashlib
import hmac
import re
import secrets

# OWASP's Password Storage Cheat Sheet names this pair of costs (32 MiB a try) among its equivalent minimums.
COST, BLOCK_SIZE, PARALLELISM = 2**15, 8, 3
BASE64 = r"((?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)"
FORM = re.compile(rf"scrypt\$(\d{{1,8}})\$(\d{{1,3}})\$(\d{{1,3}})\${BASE64}\${BASE64}")
MEMORY_BYTES = 256 << 20
SHORTEST_BYTES = 16


def hash_password(password: str, *, salt: bytes | None = None) -> str:
    """`scrypt$cost$block$parallel$salt$hash` of a password, with a fresh salt unless one is given."""
    salt = secrets.token_bytes(16) if salt is None else salt
    derived = _derive(password, salt, cost=COST, block_size=BLOCK_SIZE, parallelism=PARALLELISM)
    encoded = (base64.b64encode(part).decode("ascii") for part in (salt, derived))
    return "$".join(("scrypt", str(COST), str(BLOCK_SIZE), str(PARALLELISM), *encoded))


def well_formed(password_hash: str) -> bool:
    """Whether `password_matches` can work with this text."""
    found = FORM.fullmatch(password_hash)
    if found is None:
        return False
    cost, block_size, parallelism = map(int, found.group(1, 2, 3))
    power_of_two = cost > 1 and cost & (cost - 1) == 0
    affordable = 0 < 128 * cost * block_size <= MEMORY_BYTES // 2
    return power_of_two and parallelism > 0 and affordable and len(base64.b64decode(found[5])) >= SHORTEST_BYTES


def password_matches(password: str, password_hash: str) -> bool:
    """Compare in constant time. False also for a hash that is not well formed."""
    found = FORM.fullmatch(password_hash)
    if found is None or not well_formed(password_hash):
        return False
    cost, block_size, parallelism = map(int, found.group(1, 2, 3))
    salt, expected = (base64.b64decode(part) for part in found.group(4, 5))
    derived = _derive(password, salt, cost=cost, block_size=block_size, parallelism=parallelism, length=len(expected))
    return hmac.compare_digest(derived, expected)


def _derive(password: str, salt: bytes, *, cost: int, block_size: int, parallelism: int, length: int = 32) -> bytes:
    return hashlib.scrypt(
        password.encode("utf-8"), salt=salt, n=cost, r=block_size, p=parallelism, maxmem=MEMORY_BYTES, dklen=length
    )
