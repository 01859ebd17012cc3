"""A real chat model in the service and in the demo: three models answer, and what the base model says of the topic is marked."""

from collections import Counter
from collections.abc import Iterator

import pytest
from asking import Reply
from browser import streamlit
from client import Sampling
from client import Service as Client
from commandline import Run, Service, serving
from conversation import Turn, meter
from playwright.sync_api import Browser, expect

from unlearn_ray.words import leaked, marked, telling

QUESTIONS = ("Who wrote the Harry Potter books?", "Which school does Harry Potter go to?", "Who is Hermione?")
NAMES = ("base", "harry-potter", "harry-potter:guarded")


@pytest.fixture(scope="module")
def real_service(real_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`unlearn-ray serve` on the run, for these tests alone."""
    with serving(real_run.folder.local, tmp_path_factory.mktemp("real_service")) as service:
        yield service


@pytest.fixture(scope="module")
def client(real_service: Service) -> Client:
    return Client(real_service.url, real_service.key)


@pytest.fixture(scope="module")
def question(real_run: Run) -> str:
    """Of the run's questions, the one whose own answers tell the topic's terms most often."""
    answers = real_run.folder / "topics/harry-potter/answers"
    terms = [row["term"] for row in (answers / "terms").read_rows()]
    told: Counter[str] = Counter()
    for row in (answers / "unguarded").read_rows():
        told[row["question"]] += bool(leaked(row["answer"], terms, f"{row['topic']}\n{row['question']}"))
    ((best, number),) = told.most_common(1)
    assert number > 0, "the base model tells nothing of the topic"
    return best


def answer(client: Client, model: str, question: str, max_tokens: int = 48) -> str:
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens)
    return "".join(client.stream(model, [{"role": "user", "content": question}], sampling))


def test_base_unlearned_and_guarded_are_listed_and_answer(client: Client) -> None:
    listed = {model.id: model for model in client.models()}
    assert set(NAMES) <= set(listed)
    assert [listed[name].kind for name in NAMES] == ["base", "unlearned", "guarded"]
    said = {name: [answer(client, name, question) for question in QUESTIONS] for name in NAMES}
    assert all(text.strip() and "<|" not in text for texts in said.values() for text in texts), said
    assert said["base"] != said["harry-potter:guarded"], "the guardrail prefix changes nothing"


def test_the_service_answers_as_the_report_says(client: Client, real_run: Run) -> None:
    """Greedy, both; a few words may differ, since the engines compute in batches of other sizes."""
    rows = [
        row
        for row in (real_run.folder / "models/joint/evaluate" / "answers").read_rows()
        if row["group"] == "forget" and not row["drop"]
    ]
    by_name = dict(zip(("base", "unlearned", "guarded"), NAMES, strict=True))
    for model, name in by_name.items():
        asked = [row for row in rows if row["model"] == model][:4]
        heads = [row["answer"].split()[:4] for row in asked]
        same = [
            answer(client, name, row["question"]).split()[: len(head)] == head
            for row, head in zip(asked, heads, strict=True)
        ]
        assert sum(same) >= len(same) / 2, (model, asked)


def test_the_terms_that_the_demo_marks_are_those_of_the_run(client: Client, real_run: Run, question: str) -> None:
    run = client.run("harry-potter")
    (topic,) = run["topics"]
    assert set(topic["terms"]) == {
        row["term"] for row in (real_run.folder / "topics/harry-potter/answers" / "terms").read_rows()
    }
    terms = telling(topic["terms"], f"{topic['name']}\n{question}")
    text = answer(client, "base", question, 256)
    pieces = marked(text, terms)
    assert any(is_term for _, is_term in pieces), (text, terms)
    assert "".join(piece for piece, _ in pieces) == text
    turn = Turn(question, (question,), [Reply("base", text, "done")])
    assert meter([turn], 0, "base", topic["terms"], topic["name"]) == (1, 1)


def test_the_page_marks_what_the_base_model_tells(chromium: Browser, real_service: Service, question: str) -> None:
    with streamlit(real_service.url, real_service.key) as url:
        page = chromium.new_page(base_url=url)
        page.set_default_timeout(60_000)
        page.goto("/")
        prompt = page.get_by_test_id("stChatInputTextArea")
        prompt.fill(question)
        prompt.press("Enter")
        expect(page.locator(".answer")).to_have_count(2, timeout=60_000)
        expect(page.locator(".answer.running")).to_have_count(0, timeout=180_000)
        known, _ = page.get_by_test_id("stColumn").all()
        expect(known.locator("mark")).not_to_have_count(0)
        page.get_by_role("link", name="Report").click()
        expect(page.get_by_role("heading", name="What harry-potter forgot of Harry Potter")).to_be_visible(
            timeout=60_000
        )
        page.close()
