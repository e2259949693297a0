"""Reading the vendor's JSON piece by piece, and saying in plain words what is wrong with a piece."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any

import msgspec

from stellerd import Secret, errors
from stellerd_brand_sync import mend
from stellerd_brand_sync.values import Unusable

BAD_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, Unusable)
"""What decoding and checking one item may raise: the item's own fault."""
_BOM = b"\xef\xbb\xbf"


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
    decoded, items = _decode(body, _V1, "catalogue", b"brands")
    return items or decoded.brands


def decode_page(body: Body) -> Page:
    """A page, its brands undecoded. Raises: BadReply when the body is anything else."""
    decoded, items = _decode(body, Page, "catalogue", b"items")
    page: Page = msgspec.structs.replace(decoded, items=items) if items else decoded
    return page


def decode_list(body: Body, what: str) -> list[msgspec.Raw]:
    """The items of a JSON list, undecoded. Raises: BadReply when the body is anything else."""
    decoded, items = _decode(body, list[msgspec.Raw], what, b"")
    return items or decoded


def brand_key(raw: msgspec.Raw) -> str:
    """What tells a brand from others: its internalId, or its bytes where it has none."""
    try:
        key = _decode_key(raw).internal_id
    except BAD_JSON:
        key = None
    return key if key and isinstance(key, str) else f"#{hashlib.blake2b(raw, digest_size=16).hexdigest()}"


def _decode(body: Body, shape: Any, what: str, items: bytes) -> tuple[Any, list[msgspec.Raw]]:
    """The body decoded, and its items apart where one of them is no JSON. Raises: BadReply."""
    if body.startswith(_BOM):
        body = body if isinstance(body, bytearray) else bytearray(body)
        del body[: len(_BOM)]  # moves nothing: a bytearray can begin anywhere
    try:
        try:
            return _mended(body, shape), []
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            parts = mend.split(body, items)
            if parts is None or not parts.items:
                raise
            return msgspec.json.decode(parts.rest, type=shape, strict=False), parts.items
    except (msgspec.MsgspecError, RecursionError) as error:
        raise errors.BadReply(f"{what}: the answer cannot be read ({readable(error)}); {_looks_like(body)}") from None


def _mended(body: Body, shape: Any) -> Any:
    """Decode; what makes the decoder refuse all of it for one item is mended first."""
    while True:
        try:
            return msgspec.json.decode(body, type=shape, strict=False)
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, RecursionError) as error:
            body = body if isinstance(body, bytearray) else bytearray(body)
            if not (mend.nesting if isinstance(error, RecursionError) else mend.half_pairs)(body):
                raise


def _looks_like(body: Body) -> str:
    start = Secret.redact(" ".join(body[:1000].decode("utf-8", "replace").split()))
    return f"{len(body)} bytes that begin with {start[:60]!r}" if start else "it is empty"


def readable(error: Exception) -> str:
    """Why an item cannot be read, in plain words: "products: expected array, got null".

    Raises: MemoryError, when that is the error: it is no item's fault.
    """
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, UnicodeDecodeError):
        return "holds bytes that are not UTF-8"
    if isinstance(error, RecursionError):
        return f"is nested deeper than {mend.LEVELS} levels"
    if not isinstance(error, BAD_JSON):
        return f"cannot be read, which is a fault of brand_sync ({type(error).__name__}: {error})"
    text = str(error).replace("`", "")
    match = re.fullmatch(r"(.*) - at \$\.?(.*)", text, re.DOTALL)
    if match and match[2]:
        text = f"{match[2]}: {match[1]}"
    return re.sub(r"^Object missing required field (\w+)$", r"\1 is missing", text)


def short_key(item: Any, names: tuple[str, ...], otherwise: str) -> str:
    """The first of `names` that a bad item has, for people to find it by."""
    if not isinstance(item, dict):
        return otherwise
    texts = [str(item[name]).strip() for name in names if type(item.get(name)) in (str, int, float)]
    return next(filter(None, texts), otherwise)
