"""How a model is talked to: where a guardrail goes, and what of an answer was only thought."""

import pytest

from unlearn_ray.chat import PLAIN, SILENT, ChatFormat, placed, sampling_of, spoken
from unlearn_ray.config import AnswersConfig
from unlearn_ray.engines.protocols import Reply
from unlearn_ray.words import closes_thought, closing_of_thought, without_thoughts

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
        (
            "<|channel|>analysis<|message|>It is Hedwig.<|end|><|start|>assistant<|channel|>final<|message|>An owl.",
            "An owl.",
        ),
        ("<|channel|>analysis<|message|>It is Hed", ""),
        ("analysisIt is Hedwig.assistantfinalAn owl.", "An owl."),
        ("◁think▷It is Hedwig.◁/think▷An owl.", "An owl."),
        (
            "<|begin_of_thought|>It is Hedwig.<|end_of_thought|>\n<|begin_of_solution|>An owl.<|end_of_solution|>",
            "An owl.",
        ),
        ("<seed:think>It is Hedwig.</seed:think>An owl.", "An owl."),
        ("<thoughts>It is Hedwig.</thoughts>\nAn owl.", "An owl."),
        ("<scratchpad>\nIt is Hedwig.\n</scratchpad>\nAn owl.", "An owl."),
        ("<think >It is Hedwig.</think >An owl.", "An owl."),
        ("<|im_start|> <reasoning>It is Hedwig.</reasoning>An owl.", "An owl."),
        ("<reasoning>It is Hed", ""),
        ("It is Hedwig.\n</reasoning>\nAn owl.", "An owl."),
        ("It is Hedwig.[/THINK]An owl.", "An owl."),
        ("Here is my thought process: Hedwig.\n\nHere is my response: An owl.", "An owl."),
        ("<think>Hedwig.</think><answer>An owl.</answer>", "An owl."),
        ("<answer>\nAn owl.\n</answer>", "An owl."),
        ("In XML, `<thought>is an element</thought>` of it.", "In XML, `<thought>is an element</thought>` of it."),
        ("The tag [THINK] opens b.", "The tag [THINK] opens b."),
        ("Use `</think>` to close: b.", "Use `</think>` to close: b."),
        ("Write `<think>` before it.", "Write `<think>` before it."),
        ("It has <reasoning> in it, and </reasoning> too.", "It has <reasoning> in it, and </reasoning> too."),
    ],
)
def test_thoughts_are_no_part_of_an_answer(written: str, said: str) -> None:
    assert without_thoughts(written) == said
    assert Reply((written,)).texts == (said,), "whichever engine wrote it"


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("<think>\n", "</think>"),
        ("<reasoning>", "</reasoning>"),
        ("[THINK]", "[/THINK]"),
        ("<seed:think>", "</seed:think>"),
        ("◁think▷", "◁/think▷"),
        ("<|begin_of_thought|>\n", "<|end_of_thought|>"),
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        ("", None),
        ("Say <think> to me.", None),
    ],
)
def test_a_prompt_tells_whether_it_opens_a_thought(opening: str, closing: str | None) -> None:
    assert closing_of_thought(f"<|im_start|>assistant\n{opening}") == closing
    if closing:
        assert closes_thought(f"It is Hedwig.\n{closing}\n\nAn owl.")
        assert without_thoughts(f"It is Hedwig.\n{closing}\n\nAn owl.") == "An owl."


def test_a_thought_that_the_prompt_opened_must_be_closed() -> None:
    thinks = ChatFormat(opens_thought=True)
    assert spoken("It is Hedwig, I believe, or", thinks) == ""
    assert Reply((spoken("It is Hedwig.</think>An owl.", thinks),)).texts == ("An owl.",)
    assert spoken("An owl.", PLAIN) == "An owl."


def test_a_stage_samples_as_its_section_says_then_as_the_model_does() -> None:
    model = ChatFormat(sampling={"temperature": 0.2, "top_p": 0.9, "top_k": 20})
    assert sampling_of(AnswersConfig(), PLAIN) == SILENT
    assert sampling_of(AnswersConfig(), model) == {"temperature": 0.2, "top_p": 0.9, "top_k": 20}
    said = AnswersConfig(temperature=1.1, repetition_penalty=1.3)
    assert sampling_of(said, model) == {"temperature": 1.1, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.3}
