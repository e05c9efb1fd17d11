"""Write JSON in the one form that has a digest: RFC 8785, the JSON Canonicalization Scheme."""

import hashlib
import json
import math
from collections.abc import Mapping
from decimal import Decimal

from app.errors import UnstorableValue


def canonical(value: object) -> str:
    """The canonical JSON text of strings, numbers, booleans, None, lists, tuples and string-keyed mappings.

    Integers are written whole, also above 2**53, where RFC 8785 would round them to a double.
    Raises UnstorableValue for NaN, infinities and any other type.
    """
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False)
        case int():
            return str(int(value))
        case float():
            return _number(value)
        case Mapping():
            if not all(isinstance(key, str) for key in value):
                raise UnstorableValue("JSON keys are strings; name the field instead of numbering it")
            # RFC 8785 3.2.3: properties are sorted by their UTF-16 code units.
            pairs = sorted(value.items(), key=lambda pair: pair[0].encode("utf-16-be", "surrogatepass"))
            return "{" + ",".join(f"{canonical(key)}:{canonical(item)}" for key, item in pairs) + "}"
        case list() | tuple():
            return "[" + ",".join(canonical(item) for item in value) + "]"
        case _:
            raise UnstorableValue(
                f"{type(value).__name__} has no canonical JSON; convert it to a plain Python value first"
            )


def sha256_hex(*texts: str) -> str:
    """SHA-256 of the texts' UTF-8 bytes one after the other, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _number(value: float) -> str:
    """A double as ECMAScript's Number::toString writes it (RFC 8785 3.2.2.3)."""
    if not math.isfinite(value):
        raise UnstorableValue(f"{value} has no canonical JSON; leave a value that was not computed out, as None")
    if value == 0:
        return "0"
    sign, digit_tuple, exponent = Decimal(repr(float(value))).normalize().as_tuple()
    digits, exponent = "".join(map(str, digit_tuple)), int(exponent)
    point = len(digits) + exponent  # the decimal point stands after this many digits
    if 0 < point <= 21:
        text = digits.ljust(point, "0") if exponent >= 0 else f"{digits[:point]}.{digits[point:]}"
    elif -6 < point <= 0:
        text = "0." + "0" * -point + digits
    else:
        mantissa = digits[0] + (f".{digits[1:]}" if len(digits) > 1 else "")
        text = f"{mantissa}e{point - 1:+d}"
    return "-" + text if sign else text
