"""Keeps text that people wrote from turning into control tokens.

A model's control tokens (``<|im_start|>``, ``<eos>``) mean something only where its chat template wrote them. Every
occurrence in user text is split by a mark that no input holds; the rendered prompt is cut at the marks and each piece
is tokenized by itself, so the tokenizer never sees such a token whole. Text without them is left exactly as it is.
"""

import re
from collections.abc import Iterable


class ControlTexts:
    """The texts of a vocabulary's control tokens, ready to be looked for."""

    def __init__(self, texts: Iterable[str]) -> None:
        long = sorted((text for text in texts if len(text) > 1), key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, long)) or r"(?!)")
        self.beginnings = frozenset(text[:size] for text in long for size in range(2, len(text)))
        self.endings = frozenset(text[size:] for text in long for size in range(2, len(text) - 1))
        self.longest = len(long[0]) if long else 0


class Shield:
    """Marks control-token texts inside the untrusted strings of one prompt."""

    def __init__(self, control: ControlTexts, inputs: Iterable[str]) -> None:
        self._control = control
        self._mark = _unused_mark("".join(inputs))

    def protect(self, text: str) -> str:
        """The text with every whole control token split, and every part of one at an edge closed off."""
        control, mark = self._control, self._mark
        text = control.pattern.sub(lambda match: match[0][0] + mark + match[0][1:], text)
        sizes = range(1, control.longest)
        head = mark if any(text[:size] in control.endings for size in sizes) else ""
        tail = mark if any(text[-size:] in control.beginnings for size in sizes) else ""
        return head + text + tail

    def pieces(self, rendered: str) -> tuple[str, ...]:
        """The rendered prompt cut at the marks."""
        return tuple(piece for piece in rendered.split(self._mark) if piece)


def _unused_mark(text: str) -> str:
    """A short string of noncharacters (U+FDD0, U+FDD1) that ``text`` does not hold."""
    size = 1
    while (mark := "\ufdd0" + "\ufdd1" * size + "\ufdd0") in text:
        size += 1
    return mark
