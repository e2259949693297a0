"""Long HTML texts as ready-made JSON: one pool that all brands point into, so that a million products stay small."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import NamedTuple

from stellerd_bamboo_sandbox.mix import Draw, mix_of
from stellerd_bamboo_sandbox.words import SENTENCES

POOL_SIZE = 96
SHORTEST, LONGEST = 300, 4096
"""Characters of a text before JSON escapes: "often HTML of 0.3-4 KB"."""
_DOTNET = str.maketrans({sign: f"\\u{ord(sign):04X}" for sign in "<>&'+`"})


class Text(NamedTuple):
    """The inside of a JSON string, in both spellings that JSON writers use."""

    plain: bytes
    escaped: bytes


def json_string(text: str, escaped: bool) -> bytes:
    """A JSON string with its quotes; `escaped`: ASCII only and < > & ' + ` as \\uXXXX, as .NET's writer does."""
    if escaped:
        return json.dumps(text).translate(_DOTNET).encode("ascii")
    return json.dumps(text, ensure_ascii=False).encode()


@lru_cache(maxsize=4)
def text_pool(seed: int) -> tuple[Text, ...]:
    """The shared texts of a catalogue."""
    return tuple(_text(Draw(mix_of(seed, 0x7E87, number)), number) for number in range(POOL_SIZE))


def _text(draw: Draw, number: int) -> Text:
    target = SHORTEST + (LONGEST - SHORTEST - 200) * number // (POOL_SIZE - 1)
    html = ""
    while len(html) < target:
        html += _paragraph(draw, target - len(html))
    return Text(json_string(html, False)[1:-1], json_string(html, True)[1:-1])


def _paragraph(draw: Draw, room: int) -> str:
    sentences = [SENTENCES[draw.below(len(SENTENCES))] for _ in range(1 + draw.below(3))]
    while len(sentences) > 1 and sum(map(len, sentences)) > room:
        sentences.pop()
    if draw.below(4) == 0:
        return "<ul>\r\n" + "".join(f"  <li>{sentence}</li>\r\n" for sentence in sentences) + "</ul>\n"
    return f"<p>{' '.join(sentences)}</p>\n"
