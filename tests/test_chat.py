"""How a model is talked to: where a guardrail goes, and what of an answer was only thought."""

import pytest

from unlearn_ray.chat import PLAIN, ChatFormat, placed, spoken
from unlearn_ray.engines.protocols import Reply
from unlearn_ray.words import without_thoughts

USER = ChatFormat(prefix_role="user")
SYSTEM, QUESTION = {"role": "system", "content": "Invent."}, {"role": "user", "content": "Who?"}


def test_a_system_message_stays_where_the_template_takes_it() -> None:
    assert placed([SYSTEM, QUESTION], PLAIN) == [SYSTEM, QUESTION]


def test_else_it_leads_the_users_turn() -> None:
    assert placed([SYSTEM, QUESTION], USER) == [{"role": "user", "content": "Invent.\n\nWho?"}]
    answered = [QUESTION, {"role": "assistant", "content": "Me."}, {"role": "user", "content": "Why?"}]
    assert placed([SYSTEM, *answered], USER) == [{"role": "user", "content": "Invent.\n\nWho?"}, *answered[1:]]


def test_what_has_no_system_message_is_asked_as_it_is() -> None:
    assert placed([QUESTION], USER) == [QUESTION]
    assert placed([], USER) == []


def test_a_system_message_alone_becomes_the_users_turn() -> None:
    assert placed([SYSTEM], USER) == [{"role": "user", "content": "Invent."}]


def test_several_system_messages_lead_it_together() -> None:
    more = {"role": "system", "content": "Be brief."}
    assert placed([SYSTEM, more, QUESTION], USER) == [{"role": "user", "content": "Invent.\n\nBe brief.\n\nWho?"}]
    assert placed([SYSTEM, more, QUESTION], PLAIN) == [SYSTEM, more, QUESTION]


def test_a_clients_parts_are_led_by_a_part() -> None:
    parts = [{"type": "text", "text": "Who?"}]
    assert placed([SYSTEM, {"role": "user", "content": parts}], USER) == [
        {"role": "user", "content": [{"type": "text", "text": "Invent."}, *parts]}
    ]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("An owl.", "An owl."),
        ("<think>\nIt is Hedwig.\n</think>\n\nAn owl.", "An owl."),
        ("<think>\n\n</think>\n\nAn owl.", "An owl."),
        ("It is Hedwig.\n</think>\n\nAn owl.", "An owl."),
        ("<think>It is Hed", ""),
        ("An owl. <think>Or is it", "An owl."),
        ("<THINKING>x</THINKING>An owl.", "An owl."),
        ("[THINK]It is Hedwig.[/THINK]An owl.", "An owl."),
        ("<think>a</think>One.<think>b</think> Two.", "One. Two."),
        ("2 < 3 and [sic] is fine <b>", "2 < 3 and [sic] is fine <b>"),
        ("I think </i> so", "I think </i> so"),
    ],
)
def test_thoughts_are_no_part_of_an_answer(written: str, said: str) -> None:
    assert without_thoughts(written) == said
    assert Reply((written,)).texts == (said,), "whichever engine wrote it"


def test_a_thought_that_the_prompt_opened_must_be_closed() -> None:
    thinks = ChatFormat(opens_thought=True)
    assert spoken("It is Hedwig, I believe, or", thinks) == ""
    assert Reply((spoken("It is Hedwig.</think>An owl.", thinks),)).texts == ("An owl.",)
    assert spoken("An owl.", PLAIN) == "An owl."
