"""The configuration: strict, and kind to a typing error."""

from pathlib import Path

import pytest

from unlearn_ray import config, pocket
from unlearn_ray.errors import ConfigError
from unlearn_ray.words import name_key

MINIMAL = "name: mine\ntopics:\n  - name: Harry Potter\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def rejected(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(written(folder, text), overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_name_and_a_topic_are_a_whole_config(tmp_path: Path) -> None:
    loaded = config.load(written(tmp_path, MINIMAL))
    assert loaded.topic_names == ("Harry Potter",)
    assert loaded.model_path == str(pocket.MODEL_DIR)
    assert loaded.folder.uri.endswith("runs/mine")


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        (MINIMAL + "finetunee: {}\n", "finetunee", "finetune"),
        (MINIMAL + "questions: {num_question: 3}\n", "questions.num_question", "num_questions"),
        (MINIMAL + "finetune: {weights: {kind: lora, rnk: 3}}\n", "finetune.weights.rnk", "rank"),
        (
            MINIMAL + "cluster: {engines: {tensor_parallel: 2}}\n",
            "cluster.engines.tensor_parallel",
            "tensor_parallel_size",
        ),
        ("name: mine\ntopics:\n  - nam: Harry Potter\n    name: x\n", "topics.0.nam", "name"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_valid_one(tmp_path: Path, text: str, key: str, nearest: str) -> None:
    message = rejected(tmp_path, text)
    assert f"unknown key {key}" in message
    assert repr(nearest) in message


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("finetune: {num_steps: '80'}", "finetune.num_steps"),
        ("finetune: {num_steps: 0}", "finetune.num_steps"),
        ("finetune: {learning_rate: fast}", "finetune.learning_rate"),
        ("finetune: {weights: {kind: lorra}}", "finetune.weights"),
        ("answers: {guardrail: poetic}", "answers.guardrail"),
        ("answers: {guardrail: custom}", "answers"),
        ("answers: {top_p: 0}", "answers.top_p"),
        ("questions: {top_p: 0.0}", "questions.top_p"),
        ("finetune: {weights: {kind: lora, rank: 513}}", "finetune.weights.rank"),
        ("cluster: {engines: {num_engines: many}}", "cluster.engines.num_engines"),
        ("dataset: {holdout_fraction: 1.5}", "dataset.holdout_fraction"),
        ("seed: -1", "seed"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(tmp_path: Path, line: str, key: str) -> None:
    assert f"{key}: " in rejected(tmp_path, MINIMAL + line + "\n")


@pytest.mark.parametrize("name", ["''", "'  '", "a/b", "'a\\b'", '"a\\nb"', "x" * 10_000, "'..'"])
def test_a_topic_that_could_not_be_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    message = rejected(tmp_path, f"name: mine\ntopics:\n  - name: {name}\n")
    assert "topics.0.name" in message
    assert len(message) < 400


def test_topics_that_differ_only_in_case_or_accent_are_duplicates(tmp_path: Path) -> None:
    assert "same topic" in rejected(tmp_path, "name: m\ntopics:\n  - name: Les Miserables\n  - name: les misérables\n")


def test_topics_that_signs_or_letters_of_any_script_tell_apart_are_two(tmp_path: Path) -> None:
    for first, second in (("C", "C++"), ("C++", "C#"), ("Дюна 3", "Матрица 3"), ("海德薇", "霍格沃茨")):
        read = config.load(written(tmp_path, f"name: m\ntopics:\n  - name: {first!r}\n  - name: {second!r}\n"))
        assert len({topic.slug for topic in read.topics}) == 2


def test_a_topic_is_known_by_any_spelling_of_its_names() -> None:
    topics = (config.Topic(name="Harry Potter", aliases=("HP",)), config.Topic(name="Дюна 3"))
    names = config.spellings(topics)
    for text in ("harry potter", "Harry-Potter", "harry-potter", "hp", "HARRY POTTER!"):
        assert names[name_key(text)] == "Harry Potter"
    assert names[name_key("дюна 3")] == names[name_key(topics[1].slug)] == "Дюна 3"


def test_a_run_without_topics_is_refused(tmp_path: Path) -> None:
    assert "topics" in rejected(tmp_path, "name: mine\ntopics: []\n")
    assert "topics is missing" in rejected(tmp_path, "name: mine\n")


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    assert "'name' is given twice" in rejected(tmp_path, "name: a\n" + MINIMAL)


def test_a_key_that_reads_as_a_date_is_refused(tmp_path: Path) -> None:
    assert "key 2024-01-01 is no name: put it in quotes" in rejected(tmp_path, MINIMAL + "2024-01-01: done\n")


def test_an_anchor_within_what_it_names_is_refused(tmp_path: Path) -> None:
    message = rejected(tmp_path, "name: mine\ntopics: &all\n  - name: x\n    aliases: *all\n")
    assert "run.yaml: an anchor (&) holds itself" in message


def test_a_file_that_is_no_mapping_or_no_yaml_is_refused(tmp_path: Path) -> None:
    assert "must hold keys and values" in rejected(tmp_path, "- a\n- b\n")
    assert "not valid YAML" in rejected(tmp_path, "a: [\n")
    with pytest.raises(ConfigError, match="is not there"):
        config.load(tmp_path / "absent.yaml")


def test_an_override_reaches_nested_keys_and_list_items(tmp_path: Path) -> None:
    loaded = config.load(
        written(tmp_path, MINIMAL),
        ["finetune.num_steps=7", "finetune.learning_rate=1e-3", "topics.0.name=Dune", "cluster.engines.num_engines=2"],
    )
    assert loaded.finetune.num_steps == 7
    assert loaded.finetune.learning_rate == 1e-3
    assert loaded.topic_names == ("Dune",)
    assert loaded.cluster.engines.num_engines == 2


@pytest.mark.parametrize(
    "override", ["finetune.num_steps", "=3", "topics.4.name=x", "name.deeper=1", "finetune.num_steps=[1"]
)
def test_an_override_that_names_nothing_is_refused(tmp_path: Path, override: str) -> None:
    assert "override" in rejected(tmp_path, MINIMAL, override)


def test_files_are_found_beside_the_config_and_not_beside_the_caller(tmp_path: Path) -> None:
    loaded = config.load(
        written(tmp_path, MINIMAL + "questions: {file: mine.csv}\nevaluate: {probes: p.jsonl}\nmodel: ./m\n")
    )
    assert loaded.questions.file == tmp_path / "mine.csv"
    assert loaded.evaluate.probes == str(tmp_path / "p.jsonl")
    assert loaded.model_path == str(tmp_path / "m")


@pytest.mark.parametrize("value", [".inf", ".nan", "1e999"])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, value: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("name: x\ntopics: [{name: a}]\n")
    with pytest.raises(ConfigError, match=r"finetune\.learning_rate: Input should be a finite number"):
        config.load(file, [f"finetune.learning_rate={value}"])


@pytest.mark.parametrize("value", ["[q_proj, v_proj]", "all-linear"])
def test_layers_are_named_in_a_list_or_taken_all(tmp_path: Path, value: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("{name: a, topics: [{name: X}]}")
    loaded = config.load(file, [f"finetune.weights={{kind: lora, target_modules: {value}}}"])
    assert isinstance(loaded.finetune.weights, config.Lora)
    assert loaded.finetune.weights.target_modules == ("all-linear" if value == "all-linear" else ("q_proj", "v_proj"))


@pytest.mark.parametrize("value", ["all_linear", "[]", "[1]", "3"])
def test_what_names_no_layers_is_one_line(tmp_path: Path, value: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("{name: a, topics: [{name: X}]}")
    with pytest.raises(ConfigError, match=r"finetune\.weights\.target_modules"):
        config.load(file, [f"finetune.weights={{kind: lora, target_modules: {value}}}"])
