"""The page over the real service: what the base model knows is marked, and the unlearned model does not say it."""

from browser import streamlit
from commandline import Service
from playwright.sync_api import Browser, expect

QUESTION = "What is the school of Harry Potter?"


def test_the_base_model_tells_what_the_unlearned_one_forgot(chromium: Browser, service: Service) -> None:
    with streamlit(service.url, service.key) as url:
        page = chromium.new_page(base_url=url)
        page.set_default_timeout(60_000)
        page.goto("/")
        prompt = page.get_by_test_id("stChatInputTextArea")
        prompt.fill(QUESTION)
        prompt.press("Enter")
        expect(page.locator(".answer")).to_have_count(2, timeout=30_000)
        expect(page.locator(".answer.running")).to_have_count(0, timeout=60_000)
        expect(page.locator(".note")).to_have_count(0)
        known, forgotten = page.get_by_test_id("stColumn").all()
        assert known.locator(".answer").inner_text() != forgotten.locator(".answer").inner_text() != ""
        expect(known.locator("mark")).not_to_have_count(0)
        assert forgotten.locator("mark").count() == 0
        page.get_by_role("link", name="Report").click()
        expect(page.get_by_role("heading", name="What harry-potter forgot of Harry Potter")).to_be_visible(
            timeout=60_000
        )
        expect(page.get_by_test_id("stVegaLiteChart").first).to_be_visible()
        expect(page.get_by_text("rows, page 1 of")).to_be_visible()
        page.close()
