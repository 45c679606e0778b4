"""The built-in labelled set."""

from collections import Counter

from edged.optimize.items import all_text, built_in

FACTS, INTENTS = built_in()


def test_every_question_is_asked_once_and_has_one_right_answer():
    """Options differ from each other, the answer is one of them, no question comes twice."""
    for task in (FACTS, INTENTS):
        assert len({question.prompt for question in task.questions}) == len(task.questions) == len(task.answers)
        for question, answer in zip(task.questions, task.answers, strict=True):
            assert len(set(question.options)) == len(question.options)
            assert 0 <= answer < len(question.options)
            assert all(option == f" {option.strip()}" for option in question.options)


def test_the_set_is_large_and_even_enough():
    """Four options at changing places; six intents, ten utterances each, that are not among the examples."""
    assert len(FACTS.questions) >= 200
    assert {len(question.options) for question in FACTS.questions} == {4}
    assert min(Counter(FACTS.answers).values()) > len(FACTS.answers) / 8
    assert Counter(INTENTS.answers) == dict.fromkeys(range(6), 10)
    assert not any(question.prompt in INTENTS.prefix for question in INTENTS.questions)
    assert FACTS.questions[0].prompt in all_text((FACTS, INTENTS))


def test_a_part_of_a_task_is_its_beginning():
    part = FACTS.first(3)
    assert part.questions == FACTS.questions[:3]
    assert part.answers == FACTS.answers[:3]
