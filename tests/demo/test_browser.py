"""The page as a reader has it: a real browser, over a scripted service."""

import json
import time

from playwright.sync_api import Page, expect
from scripted_service import FACTS, ScriptedService, answer

OWL, SCHOOL = FACTS[0][1], FACTS[1][1]
# How far to the right the page reaches; what can be swiped by itself is left out.
WIDEST = """Math.max(document.documentElement.scrollWidth, ...Array.from(
    document.querySelectorAll('[data-testid="stVerticalBlock"] > *'),
    element => element.closest('[class*="st-key-suggested-"]') ? 0 : element.getBoundingClientRect().right))"""
expect.set_options(timeout=60_000)


def ask(page: Page, question: str) -> None:
    prompt = page.get_by_test_id("stChatInputTextArea")
    expect(prompt).to_be_enabled()
    prompt.fill(question)
    prompt.press("Enter")


def expect_answers(page: Page, *texts: str) -> None:
    expect(page.locator(".answer.running")).to_have_count(0)
    expect(page.locator(".answer")).to_have_text(list(texts))


def choose(page: Page, label: str, option: str) -> None:
    page.get_by_role("combobox", name=label).click()
    page.get_by_role("option", name=option, exact=True).click()


def test_two_different_answers_stream_at_the_same_time(page: Page, behind: ScriptedService) -> None:
    behind.seconds = 0.2
    ask(page, OWL)
    running = page.locator(".answer.running")
    expect(running).to_have_count(2)
    seen: list[list[int]] = []
    while len(texts := running.all_inner_texts()) == 2:
        seen.append([len(text) for text in texts])
        page.wait_for_timeout(50)
    num_steps = [len({lengths[pane] for lengths in seen}) for pane in (0, 1)]
    assert min(num_steps) >= 3, f"both grow while both run: {seen}"
    expect_answers(page, answer("base", OWL), answer("harry-potter", OWL))
    panes = page.get_by_test_id("stColumn")
    expect(panes.nth(0).locator("mark")).to_have_text(["Hedwig"])
    expect(panes.nth(1).locator("mark")).to_have_count(0)
    expect(page.locator(".meter")).to_have_text(["1 of 1 answer leaks (100 %)", "0 of 1 answer leaks (0 %)"])


def test_stop_keeps_what_has_come(page: Page, behind: ScriptedService) -> None:
    behind.seconds = 0.4
    ask(page, OWL)
    expect(page.locator(".answer").first).to_contain_text("The answer")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".note")).to_have_text(["Stopped.", "Stopped."])
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    assert answer("base", OWL).startswith(said := page.locator(".answer").first.inner_text()) and "knows" not in said
    behind.seconds = 0.02
    ask(page, SCHOOL)
    expect(page.locator(".answer").nth(1)).to_have_text(answer("base", SCHOOL))


def test_a_conversation_has_a_history_a_pane_and_can_be_exported_and_cleared(
    page: Page, behind: ScriptedService
) -> None:
    page.get_by_role("button", name=OWL).click()
    expect_answers(page, answer("base", OWL), answer("harry-potter", OWL))
    ask(page, SCHOOL)
    expect(page.locator(".answer")).to_have_count(4)
    expect_answers(page, *(answer(model, text) for model in ("base", "harry-potter") for text in (OWL, SCHOOL)))
    for body in behind.asked[2:]:
        told = [message["content"] for message in body["messages"]]
        assert told == [OWL, answer(body["model"], OWL), SCHOOL]
    page.get_by_role("button", name="Export").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="JSON").click()
    assert [turn["question"] for turn in json.loads(download.value.path().read_text())["turns"]] == [OWL, SCHOOL]
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".answer")).to_have_count(0)


def test_a_third_model_another_model_and_another_sampling_outlast_a_look_at_another_page(
    page: Page, behind: ScriptedService
) -> None:
    page.get_by_role("button", name="Sampling").click()
    num_tokens = page.get_by_role("spinbutton", name="Max tokens")
    num_tokens.fill("64")
    num_tokens.press("Enter")
    page.keyboard.press("Escape")
    expect(num_tokens).to_have_count(0)
    page.get_by_text("Third model").click()
    expect(page.get_by_role("combobox", name="Model 3")).to_have_value("harry-potter:guarded")
    choose(page, "Model 1", "harry-potter@2")
    page.get_by_role("link", name="Probe").click()
    expect(page.get_by_role("combobox", name="First model")).to_be_visible()
    page.get_by_role("link", name="Compare").click()
    expect(page.get_by_role("combobox", name="Model 1")).to_have_value("harry-potter@2")
    ask(page, OWL)
    expect_answers(page, *[answer("harry-potter", OWL)] * 3)
    assert {body["model"] for body in behind.asked} == {"harry-potter@2", "harry-potter", "harry-potter:guarded"}
    assert {(body["max_tokens"], body["temperature"], body["top_p"]) for body in behind.asked} == {(64, 0.0, 1.0)}


def test_the_report_shows_scores_plots_worst_leaks_and_rows(page: Page, behind: ScriptedService) -> None:
    page.get_by_role("link", name="Report").click()
    expect(page.get_by_role("heading", name="What harry-potter forgot of Harry Potter")).to_be_visible()
    # Three facts prove nothing, however they are told.
    expect(page.get_by_text("No forgetting measured: Harry Potter.")).to_be_visible()
    expect(page.get_by_role("cell", name="100 %* [29, 100]").first).to_be_visible()
    expect(page.get_by_test_id("stVegaLiteChart")).to_have_count(4)
    expect(page.locator(".answer mark")).to_have_text(["Hedwig", "Hogwarts"])
    expect(page.get_by_text("60 rows, page 1 of 3")).to_be_visible()
    filter_text = page.get_by_role("textbox", name="Text contains")
    filter_text.fill("the 17th")
    filter_text.press("Enter")
    expect(page.get_by_text("1 row, page 1 of 1")).to_be_visible()


def test_probes_are_put_to_two_models_and_drawn(page: Page, behind: ScriptedService) -> None:
    page.get_by_role("link", name="Probe").click()
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_text("12 of 12 answers")).to_be_visible()
    expect(page.get_by_test_id("stVegaLiteChart")).to_have_count(1)
    expect(page.get_by_test_id("stDataFrame")).to_have_count(1)
    assert len(behind.asked) == 12


def test_a_service_that_is_away_is_said_and_the_page_recovers_by_itself(page: Page, behind: ScriptedService) -> None:
    onlooker = page.context.new_page()
    onlooker.goto("/")
    expect(onlooker.get_by_text("Suggested questions")).to_be_visible()
    behind.stop()
    try:
        ask(page, OWL)
        expect(page.locator(".note").first).to_contain_text("No service answers at")
        expect(page.locator(".note").first).to_contain_text("Trying again")
        newcomer = page.context.new_page()
        time.sleep(3)  # as long as the page believes in the list of models that it has
        newcomer.goto("/")
        for tab in (newcomer, onlooker):
            expect(tab.get_by_text("No service answers at")).to_be_visible()
    finally:
        behind.restart()
    expect_answers(page, answer("base", OWL), answer("harry-potter", OWL))
    for tab in (newcomer, onlooker):
        expect(tab.get_by_text("Suggested questions")).to_be_visible()
        expect(tab.get_by_text("No service answers at")).to_have_count(0)


def test_a_full_and_a_slow_service_are_told_apart(page: Page, behind: ScriptedService) -> None:
    behind.failures.extend(["full", "silent"])
    ask(page, OWL)
    expect(page.get_by_text("The service is full. Trying again in 1 s.")).to_be_visible()
    expect(page.get_by_text("The service is slow: no token for")).to_be_visible()
    expect_answers(page, answer("base", OWL), answer("harry-potter", OWL))


def test_every_page_fits_a_phone(page: Page, behind: ScriptedService) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.get_by_role("button", name=OWL).click()
    expect_answers(page, answer("base", OWL), answer("harry-potter", OWL))
    for path, sign in (("", ""), ("/report", "60 rows, page 1 of 3"), ("/probe", "Both models are asked each probe")):
        if path:
            page.goto(path)
            expect(page.get_by_text(sign)).to_be_visible()
        assert page.evaluate(WIDEST) <= 390, path or "/"
