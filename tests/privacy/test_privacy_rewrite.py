"""A request as an upstream sees it: every text rewritten, everything else as it was."""

import json
from dataclasses import fields

import pytest
from builders import a_request
from privacy_builders import CARD, MAIL, PHONE, a_chat, a_detector, redacted, said

from edged.core import (
    Chat,
    Clearance,
    Completion,
    Image,
    Locality,
    Message,
    OutputFormat,
    OutputKind,
    Request,
    Role,
    Tool,
    ToolCall,
    ToolChoice,
    ToolMode,
)
from edged.errors import Unsupported
from edged.privacy import rewrite
from edged.upstream import openai

CLEARED = Clearance(Locality.REDACT)
SCHEMA = json.dumps(
    {
        "type": "object",
        "description": f"mail of {MAIL}",
        "properties": {MAIL: {"enum": [MAIL, "other"], "const": 4111111111111111}},
    }
)


def _planted():
    """A request with an address in every text that there is."""
    call = ToolCall(f"call_{MAIL}", f"send_{MAIL}", json.dumps({"to": MAIL, "call": 4915123456789, MAIL: [PHONE]}))
    messages = (
        Message(Role.SYSTEM, f"Serve {MAIL}."),
        Message(Role.USER, f"I am {MAIL}", name=f"u_{MAIL}"),
        Message(Role.ASSISTANT, None, tool_calls=(call,)),
        Message(Role.TOOL, json.dumps({"found": f"line\n{MAIL}"}), tool_call_id=f"call_{MAIL}"),
    )
    return a_request(
        clearance=CLEARED,
        stop=(f"bye {MAIL}",),
        tools=(Tool(f"send_{MAIL}", f"mails {MAIL}", SCHEMA),),
        tool_choice=ToolChoice(ToolMode.NAMED, f"send_{MAIL}"),
        output=OutputFormat(OutputKind.JSON_SCHEMA, SCHEMA, name=f"n_{MAIL}", description=f"d {MAIL}"),
    ), messages


def _with(request, messages):
    return rewrite.replace(request, input=Chat(messages))


def test_no_text_of_a_request_leaves_as_it_was():
    """Messages, names, calls and their results, tools, schemas, choices and stops: the encoded call has no address."""
    result = redacted(_with(*_planted()))
    body = openai.encode(result.request, "m", pinned=False).encode().decode()
    for planted in (MAIL, "anna.mueller", PHONE, "901820", "4111111111111111", "4915123456789"):
        assert planted not in body
    assert result.request.clearance == Clearance(Locality.REDACT, redacted=True)


def test_the_same_value_has_one_placeholder_throughout():
    """The model can still tell who is who."""
    result = redacted(_with(*_planted()))
    messages, token = result.request.input.messages, result.vault.token("email", MAIL)
    assert messages[0].text == f"Serve <{token}>."
    assert messages[1].name.startswith("EMAIL_")  # letters, digits and underscores, as a name has to be
    assert json.loads(messages[2].tool_calls[0].arguments)["to"] == f"<{token}>"
    assert json.loads(messages[3].text) == {"found": f"line\n<{token}>"}
    assert messages[3].tool_call_id == messages[2].tool_calls[0].id
    assert result.request.tools[0].name == messages[2].tool_calls[0].name == result.request.tool_choice.name


def test_json_stays_json():
    """Arguments and schemas still parse; a number that was a card becomes a string."""
    result = redacted(_with(*_planted()))
    schema = json.loads(result.request.output.definition)
    mail = f"<{result.vault.token('email', MAIL)}>"
    assert schema["properties"][mail] == {"enum": [mail, "other"], "const": "<CARD_1>"}
    arguments = json.loads(result.request.input.messages[2].tool_calls[0].arguments)
    assert arguments["call"].startswith("<PHONE_")


def test_json_without_personal_data_is_sent_byte_for_byte():
    """Spacing, escapes and numbers are nobody's business."""
    text = '{ "a" : 1.50, "b":"\\u00e9\\/", "c": [1e3 ,true] }'
    call = ToolCall("c1", "f", text)
    request = _with(a_request(clearance=CLEARED), (Message(Role.ASSISTANT, None, tool_calls=(call,)),))
    assert redacted(request).request.input.messages[0].tool_calls == (call,)


def test_escapes_hide_nothing():
    """What is written as \\u0040 in JSON is an @ to whoever reads it."""
    assert said(redacted(text='{"to": "anna\\u0040example.com"}')) == '{"to": "<EMAIL_1>"}'
    assert said(redacted(text='["{\\"to\\": \\"anna\\\\u0040example.com\\"}"]')).count("<EMAIL_1>") == 1
    assert said(redacted(text=r"log: {a\nanna@example.com}")) == r"log: {a\n<EMAIL_1>}"


def test_a_literal_that_looks_like_a_placeholder_is_never_taken_for_one():
    """Its number is left out, in whatever spelling it stands there."""
    result = redacted(text=f"<EMAIL_1> and email\\_2 and {MAIL}")
    assert said(result) == "<EMAIL_1> and email\\_2 and <EMAIL_3>"
    assert result.vault.value("EMAIL_1") is None


def test_a_name_given_away_once_is_hidden_everywhere():
    """Its parts too: who is greeted in one message is only mentioned in the next."""
    request = _with(a_request(clearance=CLEARED), a_chat("Dear Mrs Anna Schmidt,", "Schmidt said: ask Anna").messages)
    result = redacted(request)
    assert said(result, 0) == "Dear Mrs <NAME_1>,"
    assert "Schmidt" not in said(result, 1)
    assert "Anna" not in said(result, 1)


def test_placeholders_are_the_same_in_the_next_turn():
    """A conversation is sent again with every turn: what stood before keeps its placeholder, so caches hold."""
    first = [f"mail {MAIL}", f"call {PHONE}"]
    once = redacted(_with(a_request(clearance=CLEARED), a_chat(*first).messages))
    again = redacted(_with(a_request(clearance=CLEARED), a_chat(*first, "now other@example.com").messages))
    assert [said(once, 0), said(once, 1)] == [said(again, 0), said(again, 1)]
    assert said(again, 2) == "now <EMAIL_2>"


def test_counts_are_of_different_values():
    """Twice the same address is one address."""
    assert redacted(text=f"{MAIL} {MAIL} other@example.com {CARD}").counts == {"email": 2, "card": 1}


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        (Chat((Message(Role.USER, "see \ufffc", images=(Image(url="https://example.com/x.png"),)),)), "images"),
        (Completion((1, 2, 3)), "token ids"),
        (Completion("x" * 2_000), "too long"),
    ],
)
def test_what_cannot_be_looked_through_is_refused(asked, word):
    """Pictures, token ids and texts beyond the limit are not sent unseen."""
    with pytest.raises(Unsupported, match=word):
        redacted(rewrite.replace(a_request(clearance=CLEARED), input=asked), max_chars=1_000)


def test_a_completion_prompt_is_redacted():
    """The older endpoint is no way around."""
    result = redacted(rewrite.replace(a_request(clearance=CLEARED), input=Completion(f"mail {MAIL}")))
    assert result.request.input.prompt == "mail <EMAIL_1>"


@pytest.mark.parametrize("noun", [Request, Message, ToolCall, Tool, ToolChoice, OutputFormat])
def test_every_field_of_a_request_has_been_thought_about(noun):
    """A field in neither list is refused when it holds something: only pictures are meant to be."""
    known = rewrite._REWRITTEN[noun] | rewrite._NO_TEXT[noun]
    assert {field.name for field in fields(noun)} - known <= {"images"}
    assert known <= {field.name for field in fields(noun)}


def test_lone_surrogates_are_no_way_through():
    """Text that no UTF-8 can carry is searched all the same."""
    assert said(redacted(text=f"\ud800 {MAIL} \udfff")) == "\ud800 <EMAIL_1> \udfff"


def test_an_operators_kind_names_its_placeholder():
    """``employee_id`` becomes ``<EMPLOYEE_ID_1>``."""
    detector = a_detector(patterns={"employee_id": "E[0-9]{6}"})
    assert said(redacted(text="E123456 and E123457", detector=detector)) == "<EMPLOYEE_ID_1> and <EMPLOYEE_ID_2>"
