"""A text as detection reads it: the same length, odd signs as the plain ones they stand for."""

import re

_SURROGATES = re.compile("[\ud800-\udfff]")
_PLAIN = {
    **{0xFF01 + i: 0x21 + i for i in range(94)},  # full-width forms
    **dict.fromkeys((*range(0x2010, 0x2016), 0x2212, 0xFE63), ord("-")),
    **dict.fromkeys((0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000), ord(" ")),
    **dict.fromkeys((0xAD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF), ord("-")),  # seen by nobody: no way to hide behind
    0x2019: ord("'"),
}


def plain(text: str) -> str:
    """Every sign maps to one sign, so that places in the result are places in ``text``."""
    if text.isascii():
        return text
    return encodable(text.translate(_PLAIN))


def encodable(text: str) -> str:
    """The text without halves of surrogate pairs, which no UTF-8 can carry."""
    return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)
