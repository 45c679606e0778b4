"""A message with images as the parts that providers take, in their order. Pure."""

from edged.core import IMAGE_MARK, Image, Message


def parts(message: Message) -> list[str | Image]:
    """Text and images as they follow each other, without empty text.

    Where the marks in the text do not match the images (something rewrote the text), the images follow it.
    """
    text = message.text or ""
    texts = text.split(IMAGE_MARK)
    if len(texts) != len(message.images) + 1:
        whole = text.replace(IMAGE_MARK, "").strip("\n")
        return [*([whole] if whole else []), *message.images]
    found: list[str | Image] = []
    for place, piece in enumerate(texts):
        piece = piece.removeprefix("\n") if place else piece  # noqa: PLW2901 - the line breaks that join parts
        piece = piece.removesuffix("\n") if place < len(message.images) else piece  # noqa: PLW2901 - as above
        found += [piece] if piece else []
        found += message.images[place : place + 1]
    return found
