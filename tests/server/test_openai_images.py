"""Images in a chat: checked where they are data, passed on where they are URLs, never fetched here."""

import base64
from typing import Any

import pytest

from edged.core import IMAGE_MARK, Chat, Image
from edged.errors import InvalidRequest
from edged.server.openai_images import MAX_IMAGE_BYTES, MAX_IMAGES
from edged.server.openai_requests import chat_request

PNG = b"\x89PNG\r\n\x1a\n" + b"rest"
SAMPLES = {
    "image/png": PNG,
    "image/jpeg": b"\xff\xd8\xff\xe0rest",
    "image/gif": b"GIF89arest",
    "image/webp": b"RIFF\x10\x00\x00\x00WEBPVP8 ",
}
URL = "https://x.example/a.png?size=1"


def data_url(raw: bytes = PNG, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(raw).decode()}"


def an_image(url: Any = URL, **fields: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **fields}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def parsed(*parts: Any, role: str = "user", **fields: Any) -> Chat:
    document = {"model": "auto", "messages": [{"role": role, "content": list(parts), **fields}]}
    chat = chat_request(document, id="r1", received_s=0).request.input
    assert isinstance(chat, Chat)
    return chat


def test_an_https_url_is_kept_as_it_is() -> None:
    """With its detail, and with a mark where it stands between the texts."""
    (message,) = parsed(text("see"), an_image(detail="low"), text("and say")).messages
    assert message.images == (Image(url=URL, detail="low"),)
    assert message.text == f"see\n{IMAGE_MARK}\nand say"


@pytest.mark.parametrize("mime", SAMPLES)
def test_a_data_url_of_a_known_type_is_taken_apart(mime: str) -> None:
    """PNG, JPEG, GIF and WebP, whose first bytes are looked at."""
    (message,) = parsed(an_image(data_url(SAMPLES[mime], mime))).messages
    assert message.images == (Image(mime=mime, data=base64.b64encode(SAMPLES[mime]).decode()),)
    assert message.text == IMAGE_MARK


def test_image_jpg_is_jpeg() -> None:
    """A name that browsers accept and providers do not."""
    (message,) = parsed(an_image(data_url(SAMPLES["image/jpeg"], "image/jpg"))).messages
    assert message.images[0].mime == "image/jpeg"


def test_the_data_shows_in_no_repr() -> None:
    """Megabytes of somebody's picture do not belong in a log line."""
    assert "aGk=" not in repr(Image(mime="image/png", data="aGk="))


def test_a_mark_in_the_clients_own_text_is_no_image() -> None:
    """Beside an image it is left out; without images text is untouched."""
    assert parsed(text(f"a{IMAGE_MARK}b"), an_image()).messages[0].text == f"ab\n{IMAGE_MARK}"
    assert parsed(text(f"a{IMAGE_MARK}b")).messages[0].text == f"a{IMAGE_MARK}b"


AT = "messages[0].content[0].image_url"


@pytest.mark.parametrize(
    ("part", "code", "param", "word"),
    [
        ({"type": "image_url"}, "missing_required_parameter", AT, "required"),
        ({"type": "image_url", "image_url": {}}, "missing_required_parameter", f"{AT}.url", "required"),
        ({"type": "image_url", "image_url": 5}, "invalid_type", AT, "object"),
        (an_image(5), "invalid_type", f"{AT}.url", "string"),
        (an_image(detail="huge"), "invalid_value", f"{AT}.detail", "'auto', 'low' or 'high'"),
        (an_image(format="x"), "unknown_parameter", f"{AT}.format", "unknown"),
        ({**an_image(), "base_url": "x"}, "unknown_parameter", "messages[0].content[0].base_url", "unknown"),
        (an_image("http://x.example/a.png"), "invalid_value", f"{AT}.url", "https"),
        (an_image("file:///etc/passwd"), "invalid_value", f"{AT}.url", "https"),
        (an_image("https://"), "invalid_value", f"{AT}.url", "https"),
        (an_image("https://user:pw@x.example/"), "invalid_value", f"{AT}.url", "https"),
        (an_image("https://x.example/\r\nEvil: 1"), "invalid_value", f"{AT}.url", "https"),
        (an_image("https://x.example:99999/"), "invalid_value", f"{AT}.url", "https"),
        (an_image("https://x.example/" + "a" * 4096), "invalid_value", f"{AT}.url", "4096"),
        (an_image("data:image/png,abc"), "unsupported_parameter", f"{AT}.url", "base64"),
        (an_image(data_url(PNG, "image/svg+xml")), "unsupported_parameter", f"{AT}.url", "png, jpeg, webp or gif"),
        (an_image(data_url(PNG, "text/html")), "unsupported_parameter", f"{AT}.url", "png, jpeg, webp or gif"),
        (an_image("data:image/png;base64,$$$$"), "invalid_value", f"{AT}.url", "base64"),
        (an_image("data:image/png;base64,iVBORw0KGgo"), "invalid_value", f"{AT}.url", "base64"),
        (an_image("data:image/png;base64,"), "invalid_value", f"{AT}.url", "image/png"),
        (an_image(data_url(b"<html>")), "invalid_value", f"{AT}.url", "image/png"),
        (an_image(data_url(PNG, "image/jpeg")), "invalid_value", f"{AT}.url", "image/jpeg"),
        (an_image(data_url(PNG + bytes(MAX_IMAGE_BYTES))), "invalid_value", f"{AT}.url", str(MAX_IMAGE_BYTES)),
        (an_image(data_url(PNG + bytes(MAX_IMAGE_BYTES - 11))), "invalid_value", f"{AT}.url", str(MAX_IMAGE_BYTES)),
    ],
)
def test_a_bad_image_is_named_with_the_limit(part: dict[str, Any], code: str, param: str, word: str) -> None:
    """And not repeated."""
    with pytest.raises(InvalidRequest) as caught:
        parsed(part)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)
    assert word in caught.value.message
    assert len(caught.value.message) < 250


def test_the_largest_image_is_taken() -> None:
    """The limit is on the bytes, not on their base64."""
    raw = PNG + bytes(MAX_IMAGE_BYTES - len(PNG))
    assert parsed(an_image(data_url(raw))).messages[0].images


def test_there_is_a_limit_on_images_of_a_request() -> None:
    """Over all messages together."""
    assert len(parsed(*[an_image()] * MAX_IMAGES).messages[0].images) == MAX_IMAGES
    with pytest.raises(InvalidRequest) as caught:
        parsed(*[an_image()] * (MAX_IMAGES + 1))
    assert caught.value.param == "messages"
    assert str(MAX_IMAGES) in caught.value.message


@pytest.mark.parametrize(
    ("role", "fields"), [("system", {}), ("assistant", {}), ("tool", {"tool_call_id": "c1"}), ("developer", {})]
)
def test_only_a_user_shows_images(role: str, fields: dict[str, Any]) -> None:
    """As in OpenAI's API."""
    with pytest.raises(InvalidRequest) as caught:
        parsed(text("x"), an_image(), role=role, **fields)
    assert caught.value.param == "messages[0].content[1]"
    assert "user" in caught.value.message
