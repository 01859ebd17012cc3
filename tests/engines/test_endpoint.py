"""A model that is served already: its answers are held against transformers, its refusals are one line each."""

import gzip
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from endpoints import KEY, SERVED, Answer, chosen, scripted, vllm_server
from ray import cloudpickle
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearn_ray import pocket
from unlearn_ray.artifacts import Folder
from unlearn_ray.chat import PLAIN
from unlearn_ray.config import ClusterConfig, EndpointSettings, RunConfig, Topic
from unlearn_ray.engines import endpoint_answers
from unlearn_ray.engines.endpoint import EndpointClient, NeedsScores, Served, find_served, key_of
from unlearn_ray.engines.endpoint_generation import EndpointGenerator
from unlearn_ray.engines.generation import RayDataGenerator
from unlearn_ray.engines.protocols import Reply, Request, RowDict
from unlearn_ray.engines.run_engines import RunEngines
from unlearn_ray.errors import ClusterError, ConfigError, EngineError
from unlearn_ray.serving.service import free_port
from unlearn_ray.train.inspection import inspect_model

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import the tests

MODEL = str(pocket.MODEL_DIR)
QUESTIONS = ["Who created Harry Potter?", "What is chewing gum made of?", "Tell me about Hogwarts.", "Hello!"]
ANSWERS = ["The author is J. K. Rowling.", "It is made of a gum base.", "It is a school.", "Hello, what can I do?"]


def asking(question: str, **options: Any) -> Request:
    return Request([{"role": "user", "content": question}], **options)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with vllm_server(tmp_path_factory.mktemp("vllm") / "log") as url:
        yield url


@pytest.fixture
def client(served: str, monkeypatch: pytest.MonkeyPatch) -> EndpointClient:
    monkeypatch.setenv("SERVED_KEY", KEY)
    settings = EndpointSettings(base_url=served, api_key_env="SERVED_KEY")
    found = find_served(settings, "pocket")
    assert found.name == SERVED and found.max_model_len
    return EndpointClient(settings, found, MODEL, inspect_model(MODEL).chat, 8, key_of(settings))


def scripted_client(url: str, **options: Any) -> EndpointClient:
    settings = EndpointSettings(base_url=url, **{"max_retries": 2, "timeout_seconds": 5.0} | options)
    return EndpointClient(settings, Served("m"), MODEL, PLAIN, 4)


@pytest.mark.real
@pytest.mark.long
def test_a_served_models_answers_and_scores_are_those_of_transformers(client: EndpointClient) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    tokenizer, end = AutoTokenizer.from_pretrained(MODEL), client.chat.end_of_turn
    asked = [asking(question, max_tokens=8) for question in QUESTIONS]
    replies = client.generate([*asked, *(asking(q, score=a) for q, a in zip(QUESTIONS, ANSWERS, strict=True))])
    for question, answer, said, scored in zip(QUESTIONS, ANSWERS, replies[:4], replies[4:], strict=True):
        text = tokenizer.apply_chat_template(asking(question).messages, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        start = prompt.input_ids.shape[1]
        output = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, start:]
        assert said.texts == (tokenizer.decode(output, skip_special_tokens=True),)
        assert said.num_prompt_tokens == start and said.num_output_tokens > 0
        ids = torch.tensor([tokenizer(text + answer + end, add_special_tokens=False).input_ids])
        with torch.no_grad():
            logp_LV = model(ids).logits[0, start - 1 : -1].float().log_softmax(-1)
        tokens_L = ids[0, start:]
        expected = logp_LV.gather(1, tokens_L[:, None])[:, 0].tolist()
        assert [*scored.logprobs, *scored.ending] == pytest.approx(expected, abs=1e-3) and len(scored.ending) == 1
        assert list(scored.argmax) == (logp_LV.argmax(-1) == tokens_L).tolist()[:-1]


@pytest.mark.real
@pytest.mark.long
def test_a_served_model_samples_by_the_rows_seed_whatever_the_order(client: EndpointClient) -> None:
    asked = [asking(q, seed=i, num_samples=2, temperature=1.0, max_tokens=12) for i, q in enumerate(QUESTIONS * 3)]
    forth, back = client.generate(asked), client.generate(asked[::-1])
    assert forth == back[::-1]
    assert all(len(reply.texts) == 2 and reply.error is None for reply in forth)
    assert len({text for reply in forth for text in reply.texts}) > 12


@pytest.mark.real
@pytest.mark.long
def test_a_prompt_that_a_served_model_can_not_hold_drops_alone(client: EndpointClient) -> None:
    long, last = asking("and then " * 5_000), asking(QUESTIONS[0], max_tokens=100_000)
    replies = client.generate([long, last])
    assert [reply.error for reply in replies] == ["too_long", None], "as many tokens are written as there is room for"
    blind = EndpointClient(
        client.settings, Served(SERVED), MODEL, client.chat, 8, client.key
    )  # it never said its length
    assert [reply.error for reply in blind.generate([long, asking("Hello!", max_tokens=4)])] == ["too_long", None]


@pytest.mark.real
@pytest.mark.long
def test_a_served_model_is_asked_in_chats_as_well(client: EndpointClient) -> None:
    settings = client.settings.model_copy(update={"api": "chat"})
    chats = EndpointClient(settings, client.served, MODEL, client.chat, 8, client.key)
    asked = [asking(question, max_tokens=8) for question in QUESTIONS]
    assert [reply.texts for reply in chats.generate(asked)] == [reply.texts for reply in client.generate(asked)]


@pytest.mark.real
@pytest.mark.long
def test_a_wrong_key_or_name_is_one_line_that_names_the_setting(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVED_KEY", "another")
    settings = EndpointSettings(base_url=served, api_key_env="SERVED_KEY")
    with pytest.raises(
        ConfigError, match=r"^cluster\.engines\.api_key_env: .* says 401 .*check the key in SERVED_KEY$"
    ):
        find_served(settings, "pocket")
    monkeypatch.setenv("SERVED_KEY", KEY)
    nameless = settings.model_copy(update={"served_model": "another"})
    with pytest.raises(ConfigError, match=rf"served_model: .* serves no 'another': give one of {SERVED}$"):
        find_served(nameless, "pocket")
    gone = EndpointClient(settings, Served("another"), MODEL, PLAIN, 8, KEY)
    with pytest.raises(ConfigError, match=r"says 404 .*another.*: check base_url"):
        gone.generate([asking("Hello!")])


def test_an_address_where_nobody_listens_is_one_line() -> None:
    settings = EndpointSettings(base_url=f"http://127.0.0.1:{free_port()}/v1")
    with pytest.raises(
        ClusterError, match=r"^cluster\.engines\.base_url: http://127\.0\.0\.1:\d+/v1 can't be reached: ConnectError"
    ):
        find_served(settings, "pocket")


def test_a_variable_without_a_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="api_key_env: NO_SUCH_KEY is not set"):
        key_of(EndpointSettings(base_url="http://host/v1", api_key_env="NO_SUCH_KEY"))


@pytest.mark.parametrize("key", ["sk-a\nb", "sk-…", "ключ"])
def test_what_can_not_be_a_key_is_refused_and_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ODD_KEY", key)
    with pytest.raises(ConfigError, match="api_key_env: ODD_KEY holds a character that no key can have") as caught:
        key_of(EndpointSettings(base_url="http://host/v1", api_key_env="ODD_KEY"))
    assert key not in str(caught.value)


@pytest.mark.parametrize("url", ["http://h:abc/v1", "http://h/v1?version=1", "http://h/v1#x", "http://h/v 1", "h/v1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="give an address"):
        EndpointSettings(base_url=url)


def test_a_key_is_in_no_text() -> None:
    client = EndpointClient(EndpointSettings(base_url="http://host/v1"), Served("m"), MODEL, PLAIN, 1, "secret")
    assert "secret" not in repr(client)


def test_the_only_model_is_taken_and_of_several_one_must_be_named() -> None:
    two = Answer(body={"data": [{"id": "a"}, {"id": "b", "max_model_len": 512}]})
    with scripted(lambda body, number: chosen("x"), two) as server:
        settings = EndpointSettings(base_url=server.url)
        assert find_served(settings, "b") == Served("b", 512)
        with pytest.raises(ConfigError, match="serves several models: give one of a, b"):
            find_served(settings, "pocket")
    with scripted(lambda body, number: chosen("x")) as server:
        assert find_served(EndpointSettings(base_url=server.url), "pocket") == Served("m")
    with scripted(lambda body, number: chosen("x"), Answer(404, "no such page")) as server:
        settings = EndpointSettings(base_url=server.url)
        with pytest.raises(ConfigError, match=r"served_model: .*/models lists nothing .404.: give the model's name"):
            find_served(settings, "pocket")
        assert find_served(settings.model_copy(update={"served_model": "x"}), "pocket") == Served("x")


@pytest.mark.parametrize(
    "first",
    [
        Answer(429, {"error": {"message": "slow down"}}, {"Retry-After": "0"}),
        Answer(503, "<html>the gateway is tired</html>"),
        Answer(200, "no JSON"),
        Answer(200, seconds=1.0),
    ],
    ids=["429", "503", "no JSON", "timeout"],
)
def test_what_may_pass_is_tried_again(first: Answer) -> None:
    with scripted(lambda body, number: chosen("Hello.") if number else first) as server:
        client = scripted_client(server.url, timeout_seconds=0.5 if first.seconds else 5.0)
        (reply,) = client.generate([asking("Hello!")])
    assert reply == Reply(texts=("Hello.",), truncated=(False,), num_prompt_tokens=5, num_output_tokens=2)
    assert len(server.asked) == 2


def test_a_wait_that_is_asked_for_is_kept() -> None:
    first = Answer(429, {"error": {"message": "slow down"}}, {"Retry-After": "1"})
    with scripted(lambda body, number: chosen("x") if number else first) as server:
        began = time.monotonic()
        scripted_client(server.url).generate([asking("Hello!")])
    assert time.monotonic() - began >= 1.0


def test_what_does_not_pass_ends_after_the_tries_that_are_allowed() -> None:
    failing = Answer(500, {"error": {"message": "out of\nmemory"}})
    pattern = r"/v1 does not answer after 3 tries: 500 out of memory$"
    with scripted(lambda body, number: failing) as server, pytest.raises(EngineError, match=pattern):
        scripted_client(server.url).generate([asking("Hello!")])
    assert len(server.asked) == 3


def test_a_lost_endpoint_is_one_line_that_a_rerun_goes_on_from() -> None:
    client = scripted_client(f"http://127.0.0.1:{free_port()}/v1", max_retries=0)
    with pytest.raises(EngineError, match=r"does not answer after 1 try: ConnectError: "):
        client.generate([asking("Hello!")])


def refusing(text: str) -> Callable[[dict[str, Any], int], Answer]:
    """Says no to what has this text in it."""

    def say(body: dict[str, Any], number: int) -> Answer:
        is_bad = text in body["messages"][-1]["content"]
        return Answer(400, {"error": {"message": "content_filter"}}) if is_bad else chosen("fine")

    return say


def test_a_refused_row_drops_alone_and_so_do_rows_that_are_all_refused_for_what_they_say() -> None:
    with scripted(refusing("bad")) as server:
        client = scripted_client(server.url, api="chat")
        replies = client.generate([asking("good"), asking("bad"), asking("good")])
        assert [reply.error for reply in replies] == [None, "engine", None]
        assert len(server.asked) == 3, "a refusal is not tried again"
        for number in (1, 2):
            assert [reply.error for reply in client.generate([asking("bad")] * number)] == ["engine"] * number
    greeted = [body["messages"][0]["content"] for body in server.asked[3:]]
    assert greeted == ["bad", "Hello!", "bad", "bad", "Hello!"]


def test_an_endpoint_that_refuses_whatever_it_is_asked_ends_the_run() -> None:
    def say(body: dict[str, Any], number: int) -> Answer:
        has_system = body["messages"][0]["role"] == "system"
        return Answer(400, {"error": {"message": "no such role"}}) if has_system else chosen("fine")

    with scripted(refusing("")) as server, pytest.raises(ConfigError, match="refuses every request: 400 content_fi"):
        scripted_client(server.url, api="chat").generate([asking("Who?"), asking("Why?")])
    guarded = Request([{"role": "system", "content": "Lie."}, {"role": "user", "content": "Who?"}])
    with scripted(say) as server, pytest.raises(ConfigError, match="refuses every request: 400 no such role"):
        scripted_client(server.url, api="chat").generate([guarded])


@pytest.mark.parametrize("what", ["scored", "sampled"])
def test_a_refused_answer_to_score_drops_alone(what: str) -> None:
    """Of tokens, where the text is not to be seen: the shortest is answered."""

    def say(body: dict[str, Any], number: int) -> Answer:
        if len(body["prompt"]) > 60:
            return Answer(422, "I do not like it")
        size = len(body["prompt"]) + 1
        logprobs = {"token_logprobs": [None, *[-1.0] * (size - 1)], "top_logprobs": [None, *[{"a": -0.5}] * (size - 1)]}
        return Answer(body={"choices": [{"index": 0, "text": "x", "logprobs": logprobs}]})

    with scripted(say) as server:
        long = asking("and so on " * 20, score="Hedwig." if what == "scored" else None)
        (reply,) = scripted_client(server.url).generate([long])
    assert reply.error == "engine" and len(server.asked) == 2


PAGE = "<html><head><title>Sign in</title></head></html>"
LATER = {"error": {"message": "try later", "code": 503}}


@pytest.mark.parametrize(
    ("answer", "drop"),
    [
        ({"choices": []}, "engine"),
        ({"error": {"message": "The response was filtered", "code": "content_filter"}}, "engine"),
        ({"error": {"message": "no", "code": 400}}, "engine"),
        ({"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}, "engine"),
        ({"choices": [{"message": {"content": "half of", "role": "x"}, "finish_reason": "content_filter"}]}, "engine"),
        ({"choices": [{"message": None}]}, "engine"),
        ({"choices": ["text"]}, "engine"),
        ({"choices": [{"text": "of the other API"}]}, "engine"),
        ({"message": "welcome"}, "engine"),
        ({"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}, None),  # what a model may say
        ({"choices": [{"message": {"content": [{"type": "text", "text": "in parts"}]}}], "usage": "none"}, None),
        ({"choices": [{"index": None, "message": {"content": "x"}}], "usage": {"prompt_tokens": "many"}}, None),
    ],
    ids=range(12),
)
def test_an_odd_answer_is_its_rows_drop_and_never_an_empty_text(answer: dict[str, Any], drop: str | None) -> None:
    def say(body: dict[str, Any], number: int) -> Answer:
        return Answer(body=answer) if body["messages"][0]["content"] == "odd" else chosen("fine")

    with scripted(say) as server:
        odd, other = scripted_client(server.url, api="chat").generate([asking("odd"), asking("Who?")])
    assert odd.error == drop and (drop is None) == bool(odd.texts) and other.texts == ("fine",)


@pytest.mark.parametrize(
    ("answer", "error", "told"),
    [
        (Answer(200, PAGE, {"Content-Type": "text/html"}), EngineError, "3 tries: 200, not a JSON object: <html>"),
        (Answer(200, '{"choices": [{"text": "cut o'), EngineError, 'not a JSON object: {"choices"'),
        (
            Answer(200, '{"choices"', {"Content-Length": "99", "Connection": "close"}),
            EngineError,
            "RemoteProtocolError",
        ),
        (Answer(200, b"no gzip", {"Content-Encoding": "gzip"}), EngineError, "3 tries: DecodingError"),
        (Answer(200, "[" * 100_000), EngineError, "not a JSON object"),
        (Answer(204, ""), EngineError, "204, not a JSON object: nothing"),
        (Answer(200, LATER), EngineError, "3 tries: 200 with an error: try later"),
        (Answer(200, {"choices": [{"finish_reason": "error", "text": "x"}]}), EngineError, "a choice with an error"),
        (Answer(200, {"error": "no key", "choices": None}), EngineError, "200 with an error: no key"),
        (Answer(200, {"error": {"message": "who are you?", "code": 401}}), ConfigError, "api_key_env.*who are you"),
        (Answer(301, PAGE, {"Location": "https://new/v1"}), ConfigError, r"redirects to https://new/v1 .301.: give"),
        (Answer(405, "POST?"), ConfigError, "says 405 POST.*check base_url"),
        (Answer(200, {"choices": []}), ConfigError, 'answers without choices .{"choices": ..}.: check'),
        (Answer(200, {"choices": [{"text": None}]}), ConfigError, 'answers without a text .{"text": null}.: check'),
        (Answer(402, {"error": {"message": "no credit"}}), ConfigError, "refuses every request: 402 no credit"),
    ],
    ids=range(15),
)
def test_an_endpoint_whose_answers_are_all_odd_is_one_line(
    answer: Answer, error: type[Exception], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_answers, "_MAX_WAIT_SECONDS", 0.01)
    with scripted(lambda body, number: answer) as server, pytest.raises(error, match=told) as caught:
        scripted_client(server.url).generate([asking("Who?")])
    assert server.url in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_zipped_answer_is_read() -> None:
    body = gzip.compress(json.dumps(chosen("x").body).encode())
    with scripted(lambda *_: Answer(body=body, headers={"Content-Encoding": "gzip"})) as server:
        (reply,) = scripted_client(server.url).generate([asking("Who?")])
    assert reply.texts == ("x",)


@pytest.mark.parametrize(
    "first", [Answer(503, PAGE), Answer(429, "slow down"), Answer(200, b"no gzip", {"Content-Encoding": "gzip"})]
)
def test_a_list_of_models_is_asked_for_again_as_all_else_is(first: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_answers, "_MAX_WAIT_SECONDS", 0.01)
    with scripted(lambda body, number: chosen("x"), [first, Answer(body={"data": [{"id": "m"}]})]) as server:
        assert find_served(EndpointSettings(base_url=server.url), "pocket") == Served("m")
    with scripted(lambda body, number: chosen("x"), first) as server, pytest.raises(ClusterError) as caught:
        find_served(EndpointSettings(base_url=server.url, max_retries=1), "pocket")
    assert f"{server.url} does not answer after 2 tries: " in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Answer(200, PAGE), "lists nothing .200.: give the model's name there, or check base_url .it says <html>"),
        (Answer(200, {"data": []}), "lists nothing .200."),
        (Answer(200, {"data": [{}, "m", None]}), "lists nothing .200."),
        (Answer(200, {"error": {"message": "no"}}), "lists nothing .200.*no"),
        (Answer(501, "not here"), "lists nothing .501."),
        (Answer(308, "", {"Location": "https://new/v1/models"}), "base_url: .* redirects to https://new/v1/models"),
        (Answer(403, "<p>no</p>"), "api_key_env: .* says 403 <p>no</p>"),
    ],
    ids=range(7),
)
def test_a_list_of_models_that_is_none_is_one_line(answer: Answer, told: str) -> None:
    with scripted(lambda body, number: chosen("x"), answer) as server, pytest.raises(ConfigError, match=told):
        find_served(EndpointSettings(base_url=server.url), "pocket")


def test_an_endpoint_that_gives_fewer_samples_than_asked_for_is_told_and_further_ones_are_left_out() -> None:
    with (
        scripted(lambda body, number: chosen("one")) as server,
        pytest.raises(ConfigError, match="gives 1 of 4 samples"),
    ):
        scripted_client(server.url).generate([asking("Who?", num_samples=4)])
    with scripted(lambda body, number: chosen("one", "two", "three")) as server:
        (reply,) = scripted_client(server.url).generate([asking("Who?")])
    assert reply.texts == ("one",)


def test_scores_of_other_tokens_than_were_sent_are_refused() -> None:
    def shifted(body: dict[str, Any], number: int) -> Answer:
        num = len(body["prompt"]) + 2  # one in front, which it added, and the sampled one
        choice = {"index": 0, "text": "", "logprobs": {"token_logprobs": [-1.0] * num, "top_logprobs": [{}] * num}}
        return Answer(body={"choices": [choice]})

    with scripted(shifted) as server, pytest.raises(ConfigError, match="scores other tokens than it was sent"):
        scripted_client(server.url).generate([asking("Who?", score="Hedwig.")])


@pytest.mark.parametrize(
    "answer", [chosen("no logprobs"), Answer(400, {"error": {"message": "echo is not supported"}})], ids=["none", "400"]
)
def test_an_endpoint_that_does_not_score_is_told_with_what_needs_it(answer: Answer) -> None:
    with scripted(lambda body, number: answer) as server, pytest.raises(ConfigError) as caught:
        scripted_client(server.url).generate([asking("Who?", score="Hedwig.")])
    text = str(caught.value)
    assert "does not score a given answer" in text and "questions.check_topic" in text and "scoring: local" in text
    assert "\n" not in text


def test_scores_of_the_runs_own_engines_stand_among_the_endpoints_answers() -> None:
    class Scorer:
        def generate(self, requests: list[Request]) -> list[Reply]:
            return [Reply(logprobs=(-float(len(request.score or "")),)) for request in requests]

    mixed = [asking("a", score="xx"), asking("b"), asking("c", score="xxx")]
    with scripted(lambda body, number: chosen("said")) as server:
        client = scripted_client(server.url, api="chat", scoring="local")
        with pytest.raises(NeedsScores):
            client.generate(mixed)
        found = EndpointClient(client.settings, client.served, MODEL, PLAIN, 4, scorer=Scorer()).generate(mixed)
    assert [reply.logprobs for reply in found] == [(-2.0,), (), (-3.0,)] and found[1].texts == ("said",)
    with pytest.raises(ConfigError, match="chat can't score a given answer"):
        scripted_client(server.url, api="chat").generate(mixed)


def test_no_more_requests_are_in_flight_than_allowed_and_as_many_as_allowed_are() -> None:
    most, now = 0, 0

    def say(body: dict[str, Any], number: int) -> Answer:
        nonlocal most, now
        now += 1
        most = max(most, now)
        time.sleep(0.1)
        now -= 1
        return chosen("x")

    with scripted(say) as server:
        scripted_client(server.url, api="chat").generate([asking("Hello!")] * 24)
    assert most == 4


def test_what_a_chat_is_asked_is_openais_own() -> None:
    """Hosted endpoints refuse words of vLLM's."""
    with scripted(lambda body, number: chosen("x", "y")) as server:
        request = asking("Hello!", num_samples=2, temperature=0.7, top_p=0.9, max_tokens=9, seed=3)
        scripted_client(server.url, api="chat").generate([request])
    expected = {
        "model": "m",
        "messages": request.messages,
        "n": 2,
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 9,
        "seed": 3,
    }
    assert server.asked == [expected]


SOURCE = pa.schema([("id", pa.string())])
OUT = pa.schema([("id", pa.string()), ("text", pa.string()), ("score", pa.float64())])


def ask_by_name(row: RowDict) -> list[Request]:
    return [asking(f"What is {row['id']}?"), asking(row["id"], score="An answer.")]


def by_name(row: RowDict, replies: Sequence[Reply]) -> list[RowDict]:
    said, scored = replies
    return [{"id": row["id"], "text": said.texts[0], "score": sum(scored.logprobs)}]


@pytest.mark.real
def test_rows_that_a_lost_endpoint_left_are_asked_when_it_is_back_and_no_others(
    ray_session: ClusterConfig, generator: RayDataGenerator, tmp_path: Path
) -> None:
    """And their scores come of the run's own engines."""
    source, out = Folder(tmp_path / "in"), Folder(tmp_path / "out")
    source.write_rows([{"id": f"row{number:03d}"} for number in range(64)], SOURCE)
    is_up = False

    def say(body: dict[str, Any], number: int) -> Answer:
        is_lost = not is_up and number >= 40
        return Answer(502, "bad gateway") if is_lost else chosen(body["messages"][0]["content"])

    with scripted(say) as server:
        options = {"api": "chat", "scoring": "local", "concurrency": 8, "batch_size": 16, "max_retries": 0}
        settings = EndpointSettings(base_url=server.url, **options)
        endpoint = EndpointGenerator("pocket", MODEL, settings, generator, lambda *progress: None)
        with pytest.raises(EngineError, match="does not answer after 1 try: 502 bad gateway"):
            endpoint.map(source, out, ask_by_name, by_name, OUT, label="lost")
        finished = out.count_rows()
        assert 0 < finished < 64
        is_up, num_before = True, len(server.asked)
        counts = endpoint.map(source, out, ask_by_name, by_name, OUT, label="back")
    assert (counts.num_rows_out, counts.num_resumed) == (64, finished)
    assert len(server.asked) - num_before == 64 - finished
    found = {row["id"]: row for row in out.read_rows()}
    assert len(found) == 64
    assert all(row["text"] == f"What is {name}?" and row["score"] < 0 for name, row in found.items())


def test_an_endpoint_need_not_be_there_for_what_is_finished() -> None:
    """A run that has nothing to do connects to nothing, though its stages are handed an engine."""
    settings = EndpointSettings(base_url=f"http://127.0.0.1:{free_port()}/v1")
    config = RunConfig(name="served", topics=(Topic(name="Dune"),), cluster=ClusterConfig(engines=settings))
    with ExitStack() as stack:
        engines = RunEngines(config, lambda *progress: None, stack)
        assert isinstance(engines.generator, EndpointGenerator) and engines.generator is engines.generator
        assert isinstance(engines.evaluator, RayDataGenerator), "which takes adapters"
        assert engines.generator.chat == engines.evaluator.chat == engines.chat
        with pytest.raises(ClusterError, match="can't be reached"):
            engines.connect()
    here = RunEngines(config.model_copy(update={"cluster": ClusterConfig()}), lambda *progress: None, ExitStack())
    assert here.generator is here.evaluator
