"""A conversation is recognised by what stood before its last answer, and by nothing else."""

from dataclasses import replace

from builders import a_request

from edged.core import Chat, Message, Reason, Role, Target, ToolCall
from edged.routing.affinity import EXPIRY_S, Authorship, Conversations, before_last_answer, stays, whole

CLOUD = Authorship(Target.CLOUD, "cloud/big", "chat", stays=True)
LOCAL = Authorship(Target.LOCAL, "small", "chat", stays=False)


def turns(*texts, **fields):
    """Messages that alternate between user and assistant."""
    roles = (Role.USER, Role.ASSISTANT)
    messages = tuple(Message(roles[i % 2], text) for i, text in enumerate(texts))
    return replace(a_request(**fields), input=Chat(messages))


def test_the_next_turn_finds_the_one_before():
    """Whatever the client made of the answer's text."""
    first = whole(turns("why?"))
    assert before_last_answer(turns("why?", "because", "and then?")) == first
    assert before_last_answer(turns("why?", " because\n", "and then?")) == first
    second = whole(turns("why?", "because", "and then?"))
    assert before_last_answer(turns("why?", "because", "and then?", "nothing", "sure?")) == second


def test_an_answer_that_called_functions_is_one_turn():
    """The results stand after it."""
    asked = Chat((Message(Role.USER, "weather?"),))
    call = Message(Role.ASSISTANT, None, tool_calls=(ToolCall("1", "weather", "{}"),))
    told = Chat((*asked.messages, call, Message(Role.TOOL, "rain", tool_call_id="1")))
    assert before_last_answer(replace(a_request(), input=told)) == whole(replace(a_request(), input=asked))


def test_another_tenant_model_or_beginning_is_another_conversation():
    """No prefix crosses API keys."""
    found = {
        whole(turns("why?")),
        whole(turns("why?", tenant="kitchen")),
        whole(turns("why?", model="other")),
        whole(turns("why?!")),
        whole(turns("wh", "y?")),
    }
    assert len(found) == 5


def test_a_first_turn_has_no_author():
    """Nor has a conversation that begins with an answer."""
    assert before_last_answer(turns("why?")) is None
    only = Chat((Message(Role.ASSISTANT, "hello"), Message(Role.USER, "hi")))
    assert before_last_answer(replace(a_request(), input=only)) is None


def test_authors_expire_and_the_oldest_makes_room():
    """Bounded in number and in time."""
    known = Conversations(limit=2)
    known.note(b"a", LOCAL, now_s=0.0)
    known.note(b"b", CLOUD, now_s=1.0)
    assert known.author(b"a", now_s=2.0) == LOCAL
    known.note(b"c", LOCAL, now_s=3.0)
    assert known.author(b"b", now_s=4.0) is None
    assert known.author(b"a", now_s=EXPIRY_S + 1) is None
    assert known.author(b"c", now_s=EXPIRY_S + 3) == LOCAL
    assert len(known) == 1


def test_only_what_a_conversation_is_keeps_it_in_the_cloud():
    """A busy or slow moment passes, and local is tried again."""
    lasting = {reason for reason in Reason if stays(Target.CLOUD, reason)}
    assert {Reason.LOW_CONFIDENCE, Reason.CONTEXT_OVERFLOW, Reason.KEPT_AUTHOR} <= lasting
    assert not lasting & {Reason.QUEUE_FULL, Reason.TTFT_PREDICTED, Reason.TTFT_EXCEEDED, Reason.LOCAL_UNAVAILABLE}
    assert not any(stays(Target.LOCAL, reason) for reason in Reason)
