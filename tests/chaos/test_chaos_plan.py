"""The plan of a storm: seeded, and every fault there is."""

from itertools import islice

from edged.chaos.plan import FAULTS, MARK, STORM, Faults, asks


def some_asks(seed, count=200):
    return list(islice(asks(seed, 0, models=("auto", "small"), keys=3), count))


def some_faults(seed, count=600):
    faults = Faults(seed, "far")
    return [faults.plan({"messages": [{"role": "user", "content": "ask-abcdefghij"}]}) for _ in range(count)]


def test_the_same_seed_plans_the_same_storm():
    """Another one plans another."""
    assert some_asks(1) == some_asks(1) != some_asks(2)
    assert some_faults(1) == some_faults(1) != some_faults(2)


def test_every_request_has_a_mark_of_its_own():
    """It is in the prompt, and no digit is in it: redaction would take one for a telephone number."""
    marks = {ask.mark for ask in some_asks(3)}
    assert len(marks) == 200
    assert all(MARK.fullmatch(mark) and not any(map(str.isdigit, mark)) for mark in marks)
    assert all(ask.mark in ask.body()["messages"][0]["content"] for ask in some_asks(3))


def test_a_storm_has_every_fault_and_every_kind_of_client():
    """Within a few hundred requests; cuts meet many byte offsets."""
    planned = some_faults(4)
    assert {one.fault for one in planned} == {*FAULTS, STORM}
    cuts = {one.reply.cut_at_byte for one in planned if one.reply.cut_at_byte is not None}
    assert len(cuts) > 15
    clients = some_asks(4)
    assert {ask.label for ask in clients} == {"any", "local_only", "site_only", "redact"}
    assert {ask.form for ask in clients} == {"text", "tools", "json"}
    assert any(ask.leave_after_s for ask in clients)
    assert any(ask.leave_after_bytes for ask in clients)
    assert any(ask.read_pause_s for ask in clients)
