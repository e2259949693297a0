"""Reading the vendor's JSON piece by piece, and saying in plain words what is wrong with a piece."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any

import msgspec

from stellerd import errors
from stellerd_brand_sync.values import Unusable

BAD_JSON = (msgspec.MsgspecError, UnicodeDecodeError, Unusable)
"""What decoding and checking one item may raise: the item's own fault."""
_BOM = b"\xef\xbb\xbf"
_ESCAPE = re.compile(  # whole pairs and other escapes are matched too, so that no match begins inside one
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)


Body = bytes | bytearray
"""An answer. Brands are views into it, not copies."""


class _V1(msgspec.Struct):
    brands: list[msgspec.Raw]


_Number = Annotated[int, msgspec.Meta(ge=0)]


class Page(msgspec.Struct, rename="camel"):
    """A page of the v2 catalogue; the echoed numbers are None where the vendor left them out."""

    count: _Number
    items: list[msgspec.Raw] | None
    page_size: _Number | None = None
    page_index: _Number | None = None
    small_index: _Number | None = msgspec.field(default=None, name="pageindex")


class _Keyed(msgspec.Struct):
    internal_id: Any = msgspec.field(default=None, name="internalId")


_decode_key = msgspec.json.Decoder(_Keyed).decode


def decode_v1(body: Body) -> list[msgspec.Raw]:
    """The brands of `{"brands": [...]}`, undecoded.

    Raises: BadReply when the body is anything else.
    """
    decoded: _V1 = _decode(body, _V1, "catalogue")
    return decoded.brands


def decode_page(body: Body) -> Page:
    """A page, its brands undecoded. Raises: BadReply when the body is anything else."""
    decoded: Page = _decode(body, Page, "catalogue")
    return decoded


def decode_list(body: Body, what: str) -> list[msgspec.Raw]:
    """The items of a JSON list, undecoded. Raises: BadReply when the body is anything else."""
    decoded: list[msgspec.Raw] = _decode(body, list[msgspec.Raw], what)
    return decoded


def brand_key(raw: msgspec.Raw) -> str:
    """What tells a brand from others: its internalId, or its bytes where it has none."""
    try:
        key = _decode_key(raw).internal_id
    except (msgspec.MsgspecError, UnicodeDecodeError):
        key = None
    return key if key and isinstance(key, str) else f"#{hashlib.blake2b(raw, digest_size=16).hexdigest()}"


def _decode(body: Body, shape: Any, what: str) -> Any:
    if body.startswith(_BOM):
        body = body if isinstance(body, bytearray) else bytearray(body)
        del body[: len(_BOM)]  # moves nothing: a bytearray can begin anywhere
    try:
        try:
            return msgspec.json.decode(body, type=shape, strict=False)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            body = body if isinstance(body, bytearray) else bytearray(body)
            if not mend_half_pairs(body):
                raise
            return msgspec.json.decode(body, type=shape, strict=False)
    except msgspec.MsgspecError as error:
        raise errors.BadReply(f"{what}: the answer cannot be read ({readable(error)}); {_looks_like(body)}") from None


def mend_half_pairs(body: bytearray) -> bool:
    """Half a surrogate pair makes the decoder refuse the whole body: as a NUL it costs only the item it is in.

    Returns: whether there was any. It is mended in place: the body may be large.
    """
    found = False
    for match in _ESCAPE.finditer(body):
        if match["half"]:
            body[match.start() : match.end()] = b"\\u0000"
            found = True
    return found


def _looks_like(body: Body) -> str:
    start = " ".join(body[:200].decode("utf-8", "replace").split())
    return f"{len(body)} bytes that begin with {start[:60]!r}" if start else "it is empty"


def readable(error: Exception) -> str:
    """A decoder's message in plain words: "products: expected array, got null"."""
    if isinstance(error, UnicodeDecodeError):
        return "holds bytes that are not UTF-8"
    text = str(error).replace("`", "")
    match = re.fullmatch(r"(.*) - at \$\.?(.*)", text, re.DOTALL)
    if match and match[2]:
        text = f"{match[2]}: {match[1]}"
    return re.sub(r"^Object missing required field (\w+)$", r"\1 is missing", text)


def short_key(raw: msgspec.Raw, names: tuple[str, ...], otherwise: str) -> str:
    """The first of `names` that a bad item has, for people to find it by."""
    item = loose(raw)
    if not isinstance(item, dict):
        return otherwise
    return next((str(item[name]) for name in names if item.get(name) not in (None, "")), otherwise)


def loose(raw: msgspec.Raw) -> Any:
    """A bad item as far as it is JSON at all, else None."""
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def products_of(brand: Any) -> list[Any]:
    """The products of a bad brand, if it has a list of them."""
    found = brand.get("products") if isinstance(brand, dict) else None
    return found if isinstance(found, list) else []


def ids_of(products: list[Any]) -> set[int]:
    """Ids of products that may each be anything."""
    ids = [item.get("id") for item in products if isinstance(item, dict)]
    return {number for number in ids if type(number) is int and 0 < number < 2**31}
