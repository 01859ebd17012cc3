"""The configuration: strict, and kind to a typing error."""

from pathlib import Path

import pytest
from storage import Storage

from unlearn_ray import config, pocket
from unlearn_ray.artifacts import Folder
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


@pytest.mark.parametrize(("written_as", "kind"), [("true", "full"), ("false", "none"), ("selective", "selective")])
def test_recomputing_is_a_kind_or_yes_or_no(tmp_path: Path, written_as: str, kind: str) -> None:
    file = written(tmp_path, MINIMAL)
    loaded = config.load(file, [f"cluster.workers.gradient_checkpointing={written_as}"])
    assert loaded.cluster.workers.gradient_checkpointing == kind
    message = rejected(tmp_path, MINIMAL, "cluster.workers.gradient_checkpointing=most")
    assert "cluster.workers.gradient_checkpointing" in message and "selective" in message


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
        ("finetune:", "finetune"),
        ("finetune: {weights: }", "finetune.weights"),
        ("answers: {guardrail: custom, prefix: ''}", "answers.prefix"),
        ("questions: {angles: [history, '']}", "questions.angles.1"),
        ("dataset: {retain: {general: [' ']}}", "dataset.retain.general.0"),
        ('dataset: {retain: {general: ["\\u200b"]}}', "dataset.retain.general.0"),
        ("output: ''", "output"),
        ("model: ''", "model"),
        ("output: 2024-01-01", "output"),
        ("model: !!binary aGk=", "model"),
        ("questions: {angles: !!set {a, b}}", "questions.angles"),
        ("chat: {template_arguments: {when: [2024-01-01 10:00:00]}}", "chat.template_arguments.when.0"),
        ("'questions[0]': 3", "unknown key questions[0]"),
        ("model: ~no-such-user/x", "model"),
        ("output: ~no-such-user", "output"),
        ("questions: {file: ~no-such-user/x.csv}", "questions.file"),
        ("evaluate: {probes: ~no-such-user/x.jsonl}", "evaluate.probes"),
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


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("seed: many", "seed: give a whole number (it is 'many')"),
        ("seed: 1.5", "seed: give a whole number (it is 1.5)"),
        ("seed: -1", "seed: give 0 or more (it is -1)"),
        ("answers: {top_p: 2}", "answers.top_p: give 1.0 or less (it is 2)"),
        ("answers: {filter_leaks: maybe}", "answers.filter_leaks: give true or false (it is 'maybe')"),
        ("finetune: {learning_rate: fast}", "finetune.learning_rate: give a number (it is 'fast')"),
        ("finetune: {retain: 3}", "finetune.retain: give keys and values, such as {key: value} (it is 3)"),
        ("finetune:", "finetune: give keys and values, such as {key: value} (it is empty)"),
        ("finetune: {weights: lora}", "finetune.weights: give keys and values, such as {key: value} (it is 'lora')"),
        ("finetune: {weights: {kind: lorra}}", "finetune.weights: its kind must be one of 'lora', 'full'"),
        ("finetune: {objective: nop}", "finetune.objective: its kind must be one of 'relabel', 'idk', 'grad_ascent'"),
        ("finetune: {objective: {beta: 1}}", "finetune.objective: give a kind"),
        ("finetune: {objective: {kind: npo, bta: 1}}", "finetune.objective.bta: did you mean 'beta'?"),
        ("finetune: {objective: {kind: npo, beta: 0}}", "finetune.objective.beta: give above 0.0 (it is 0)"),
        ("finetune: {objective: grad_diff, retain: {kind: none}}", "grad_diff is gradient ascent beside a retain term"),
        ("finetune: {objective: grad_diff, retain_batch: 0}", "grad_diff is gradient ascent beside a retain term"),
        ("evaluate: {split: test}", "evaluate.split: give 'tune' or 'report' (it is 'test')"),
        ("evaluate: {probes: [a]}", "evaluate.probes: give a text, in quotes where it would read as something else"),
        ("output: no", "output: give a text, in quotes where it would read as something else (it is false)"),
        ("questions: {angles: history}", "questions.angles: give a list, such as [a, b] (it is 'history')"),
        (
            "questions: {file: 3}",
            "questions.file: give a text, in quotes where it would read as something else (it is 3)",
        ),
        (
            "cluster: {engines: {num_engines: many}}",
            "num_engines: give a whole number or 'auto' or a list, such as [a, b] (it is 'many')",
        ),
        (
            "cluster: {engines: {num_engines: 0}}",
            "num_engines: give above 0 or 'auto' or a list, such as [a, b] (it is 0)",
        ),
        ("model: " + "x" * 5_000 + ": 3", "valid"),
        ("x" * 900 + ": 3", "unknown key xx"),
    ],
    ids=range(25),
)
def test_a_message_says_in_plain_words_what_to_give(tmp_path: Path, line: str, words: str) -> None:
    message = rejected(tmp_path, MINIMAL + line + "\n")
    assert words in message
    assert len(message) < 600 + len(str(tmp_path)) and "Input should" not in message


@pytest.mark.parametrize(
    ("topics", "message"),
    [
        ("[{name: A, aliases: [B]}, {name: b}]", "'b' of 'b' is a name of 'A', too"),
        ("[{name: A}, {name: B, aliases: [a]}]", "'a' of 'B' is a name of 'A', too"),
        ("[{name: A, aliases: [Boy]}, {name: B, aliases: [the boy]}]", "'the boy' of 'B' is a name of 'A', too"),
        ("[{name: Les Misérables}, {name: B, aliases: [les-miserables]}]", "is a name of 'Les Misérables', too"),
        ("[{name: Who}, {name: The Who}]", "is a name of 'Who', too"),
        ("[{name: A, neighbours: [C, a]}]", "'a' of neighbours of 'A' is 'A', which is to be forgotten"),
        ("[{name: A, aliases: [AA], neighbours: [AA]}]", "'AA' of neighbours of 'A' is 'A'"),
        ("[{name: A, neighbours: [B]}, {name: B}]", "'B' of neighbours of 'A' is 'B'"),
        ("[{name: A, aliases: ['']}]", "topics.0.aliases.0: is empty"),
        ("[{name: A, terms: [x, ' ']}]", "topics.0.terms.1: is empty"),
        ("[{name: A, neighbours: ['']}]", "topics.0.neighbours.0: is empty"),
        ('[{name: "\\u200b"}]', "topics.0.name: is empty"),
        ("[{name: 2024-01-01}]", "topics.0.name: reads as a date (2024-01-01): put it in quotes"),
    ],
)  # fmt: skip
def test_names_that_are_anothers_or_empty_are_refused(tmp_path: Path, topics: str, message: str) -> None:
    assert message in rejected(tmp_path, f"name: mine\ntopics: {topics}\n")
    if "forgotten" in message:
        general = "name: mine\ntopics: [{name: A, aliases: [AA]}]\ndataset: {retain: {general: [Sea, aa]}}\n"
        assert "'aa' of dataset.retain.general is 'A', which is to be forgotten" in rejected(tmp_path, general)


@pytest.mark.parametrize("number", ["1e-4", "1E-4", "1.0e-4", ".1e-3", "+1e-4"])
def test_a_number_may_be_written_as_in_yaml_1_2(tmp_path: Path, number: str) -> None:
    in_file = config.load(written(tmp_path, MINIMAL + f"finetune: {{learning_rate: {number}}}\n"))
    overridden = config.load(written(tmp_path, MINIMAL), [f"finetune.learning_rate={number}"])
    assert in_file.finetune.learning_rate == overridden.finetune.learning_rate == 1e-4
    assert config.load(written(tmp_path, MINIMAL), [f"topics.0.name='{number}'"]).topic_names == (number,)


def test_keys_are_merged_and_those_written_beside_them_win(tmp_path: Path) -> None:
    text = MINIMAL + "questions: &long {max_tokens: 5, patience: 7}\nanswers: {<<: {max_tokens: 5}, num_samples: 3}\n"
    loaded = config.load(written(tmp_path, text + "dataset: {retain: {<<: {max_tokens: 5}, max_tokens: 6}}\n"))
    assert (loaded.answers.max_tokens, loaded.answers.num_samples, loaded.dataset.retain.max_tokens) == (5, 3, 6)
    for twice in ("{<<: {max_tokens: 5}, top_p: 1, top_p: 1}", "{<<: {top_p: 1, top_p: 1}}"):
        assert "'top_p' is given twice" in rejected(tmp_path, MINIMAL + f"answers: {twice}\n")
    assert "'<<' is given twice" in rejected(tmp_path, MINIMAL + "answers: {<<: {top_p: 1}, <<: {max_tokens: 5}}\n")


def test_a_name_alone_is_an_objective(tmp_path: Path) -> None:
    for text, override in (("finetune: {objective: npo}\n", []), ("", ["finetune.objective=npo"])):
        assert config.load(written(tmp_path, MINIMAL + text), override).finetune.objective == config.Npo()
    loaded = config.load(written(tmp_path, MINIMAL), ["finetune.objective={kind: dpo, beta: 0.5, invented: 1}"])
    assert loaded.finetune.objective == config.Dpo(beta=0.5, invented=1.0)
    assert config.load(written(tmp_path, MINIMAL)).finetune.objective == config.Relabel()


def test_weights_without_a_kind_are_lora(tmp_path: Path) -> None:
    for text, override in (("finetune: {weights: {rank: 8}}\n", []), ("", ["finetune.weights.rank=8"])):
        weights = config.load(written(tmp_path, MINIMAL + text), override).finetune.weights
        assert weights == config.Lora(rank=8)


def test_a_home_is_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    text = "output: ~/runs\nmodel: ~/m\nquestions: {file: ~/q.csv}\nevaluate: {probes: ~/p.jsonl}\n"
    loaded = config.load(written(tmp_path, MINIMAL + text))
    assert (loaded.output, loaded.model, loaded.evaluate.probes) == ("/home/me/runs", "/home/me/m", "/home/me/p.jsonl")
    assert loaded.questions.file == Path("/home/me/q.csv")


def test_a_models_folder_is_found_beside_the_file_and_any_other_name_is_the_hubs(tmp_path: Path) -> None:
    (tmp_path / "m/base").mkdir(parents=True)
    (tmp_path / "pocket").mkdir()
    for model, found in (("m/base", str(tmp_path / "m/base")), ("m/other", "m/other"), ("pocket", "pocket")):
        assert config.load(written(tmp_path, MINIMAL), [f"model={model}"]).model == found


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
    assert "key 2024-01-01 is not a name: put it in quotes" in rejected(tmp_path, MINIMAL + "2024-01-01: done\n")


def test_an_anchor_within_what_it_names_is_refused(tmp_path: Path) -> None:
    message = rejected(tmp_path, "name: mine\ntopics: &all\n  - name: x\n    aliases: *all\n")
    assert "run.yaml: an anchor (&) contains itself" in message


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
    "override",
    [
        *["finetune.num_steps", "=3", "topics.4.name=x", "name.deeper=1", "finetune.num_steps=[1"],
        *["topics.².name=x", "topics.٠.name=x", "topics.-1.name=x", "topics.name=x", "topics." + "9" * 5_000 + "=x"],
        *["topics[0].name=x", ".name=x", "name.=x", "finetune..rank=1", "topics.0.aliases.0=x", "x" * 5_000],
    ],
    ids=range(16),
)
def test_an_override_that_names_nothing_is_refused(tmp_path: Path, override: str) -> None:
    message = rejected(tmp_path, MINIMAL, override)
    assert "override" in message and len(message) < 300


@pytest.mark.parametrize(
    "override",
    [
        "finetune.weights=",
        "finetune=",
        "topics.0=x",
        "topics=",
        "finetune.weights=3",
        "name=",
        "seed=null",
        "chat=[]",
        "answers.prefix=a",
    ],
)
def test_an_override_of_another_type_names_its_key(tmp_path: Path, override: str) -> None:
    assert f"{override.partition('=')[0].partition('.prefix')[0]}: " in rejected(tmp_path, MINIMAL, override)


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
    with pytest.raises(ConfigError, match=r"finetune\.learning_rate: give a finite number"):
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


def test_the_pocket_model_takes_the_requests_that_it_understands(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: x\ntopics: [{name: gum}]\nanswers: {prompts: mine.yaml}\n")
    pocket, other = config.load(path), config.load(path, ["model=org/chat"])
    assert (pocket.questions.prompts, pocket.answers.prompts) == ("pocket", tmp_path / "mine.yaml")
    assert (other.questions.prompts, other.answers.prompts) == (None, tmp_path / "mine.yaml")


def test_keys_that_stand_in_a_topic_are_its_own(tmp_path: Path) -> None:
    own = "    answers: {num_samples: 9}\n    dataset: {retain: {num_neighbours: 1}, floors: {forget_rows: 7}}\n"
    loaded = config.load(
        written(tmp_path, f"{MINIMAL}{own}  - name: Dune\nanswers: {{num_samples: 2, max_tokens: 50}}\n")
    )
    potter, dune = (loaded.of_topic(topic) for topic in loaded.topics)
    assert (potter.answers.num_samples, potter.answers.max_tokens) == (9, 50)
    assert (potter.dataset.retain.num_neighbours, potter.dataset.floors.forget_rows) == (1, 7)
    assert dune is loaded


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("answers: {num_sample: 9}", "answers of 'Harry Potter': unknown key num_sample: did you mean 'num_samples'?"),
        ("answers: {num_samples: many}", "answers of 'Harry Potter': num_samples: give a whole number"),
        ("dataset: {retain: {num_general: 3}}", "a topic can't set dataset.retain.num_general"),
        ("finetune: {num_steps: 3}", "one model forgets all topics: set it for the run"),
        (
            "dataset: {floors: {probes: 3}}",
            "a topic can't set dataset.floors.probes where one model forgets all topics",
        ),
    ],
)
def test_a_key_that_can_not_stand_in_a_topic_is_one_message(tmp_path: Path, own: str, message: str) -> None:
    assert message in rejected(tmp_path, f"{MINIMAL}    {own}\n")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("topics.yaml", "- {name: Dune, kind: fiction, aliases: [Arrakis, the desert planet]}\n- name: It\n"),
        (
            "topics.jsonl",
            '{"name": "Dune", "kind": "fiction", "aliases": ["Arrakis", "the desert planet"]}\n{"name": "It"}\n',
        ),
        ("topics.csv", "name,kind,aliases\nDune,fiction,Arrakis; the desert planet\nIt\n"),
    ],
)
def test_topics_may_stand_in_a_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    dune, it = config.load(written(tmp_path, f"name: mine\ntopics: {name}\n")).topics
    assert (dune.name, dune.kind, dune.aliases) == ("Dune", "fiction", ("Arrakis", "the desert planet"))
    assert it == config.Topic(name="It")


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffname,kind,aliases\r\nDune,fiction,Arrakis; the desert planet\r\n",
        'name;kind;aliases\nDune;fiction;"Arrakis; the desert planet"\n',
        "name\tkind\taliases\nDune\tfiction\tArrakis; the desert planet\n",
        "\n name , kind,aliases ,,\n\n Dune ,fiction, Arrakis ;the desert planet,,\n , ,\n,,,,\n",
    ],
    ids=["a byte order mark", "semicolons", "tabs", "spaces and empty cells"],
)
def test_a_csv_of_topics_may_be_as_spreadsheets_write_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "topics.csv").write_text(text)
    (dune,) = config.load(written(tmp_path, "name: mine\ntopics: topics.csv\n")).topics
    assert (dune.name, dune.kind, dune.aliases) == ("Dune", "fiction", ("Arrakis", "the desert planet"))


def test_paths_in_a_file_of_topics_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "topics.yaml").write_text("- name: Dune\n  answers: {prompts: mine.yaml}\n")
    (dune,) = config.load(written(tmp_path, "name: mine\ntopics: below/topics.yaml\n")).topics
    assert dune.answers == {"prompts": str(tmp_path / "below" / "mine.yaml")}


def test_a_file_of_topics_may_be_remote(tmp_path: Path, s3_storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in s3_storage.environment.items():
        monkeypatch.setenv(key, value)
    for name, text in (("t.csv", "name\nDune\n"), ("t.yaml", "- name: Dune\n")):
        folder = Folder(s3_storage.bucket) / "topics"
        folder.write_text(name, text)
        (dune,) = config.load(written(tmp_path, f"name: mine\ntopics: {folder}/{name}\n")).topics
        assert dune.name == "Dune"
    assert "can't be read" in rejected(tmp_path, f"name: mine\ntopics: {s3_storage.bucket}/none.yaml\n")


def test_a_file_that_must_be_local_says_so(tmp_path: Path) -> None:
    for section in ("questions: {file: 's3://b/q.csv'}", "answers: {prompts: 's3://b/p.yaml'}"):
        assert "in remote storage: give a local file" in rejected(tmp_path, f"{MINIMAL}{section}\n")
    own = MINIMAL + "    answers: {prompts: 's3://b/p.yaml'}\n"
    assert "in remote storage: give a local file" in rejected(tmp_path, own)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.csv", None, "none.csv"),
        ("topics.txt", "Dune", "topics.txt can't be used"),
        ("topics.yaml", "name: Dune", "must hold a list of topics"),
        ("topics.jsonl", "{]", "topics.jsonl, line 1"),
        ("topics.csv", "name,kind\n\nDune,fiction\nIt,film\n", "topics.csv, line 4: kind: give 'fiction'"),
        ("topics.csv", "name,kint\nDune,fiction\n", "topics.csv, line 1: unknown key kint: did you mean 'kind'?"),
        ("topics.csv", "name,kind\n,fiction\n", "topics.csv, line 2: name is missing"),
        ("topics.csv", "name,\nDune,fiction\n", "topics.csv, line 2: has a cell in a column without a name"),
        ("topics.csv", "name\nDune\nIt\ndune\n", "topics.csv, line 2 and 4: 'dune' and 'Dune' are the same topic"),
        ("topics.jsonl", '\n{"name": "It", "terms": "a"}', "topics.jsonl, line 2: terms: give a list"),
        ("topics.yaml", "- name: Dune\n\n- It\n", "topics.yaml, line 3: give keys and values"),
        ("topics.yaml", "- name: 2024-01-01\n", "topics.yaml, line 1: name: reads as a date"),
        ("topics.yaml", "- name: A\n- name: B\n  answers: {num_sample: 3}\n", "line 2: answers of 'B': unknown key"),
    ],
)
def test_a_file_of_topics_that_can_not_be_used_is_one_message(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    assert message in rejected(tmp_path, f"name: mine\ntopics: {name}\n")


@pytest.mark.parametrize("value", ["3", "true", "{name: Dune}", ""])
def test_topics_that_are_neither_a_list_nor_a_file_are_told_what_to_be(tmp_path: Path, value: str) -> None:
    message = rejected(tmp_path, f"name: mine\ntopics: {value}\n")
    assert "topics: give a list of topics, such as [{name: Dune}], or the name of a file" in message


def test_an_override_of_a_topic_in_a_file_says_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "topics.csv").write_text("name\nDune\n")
    text = "name: mine\ntopics: topics.csv\n"
    assert "the topics are in topics.csv: change them there" in rejected(tmp_path, text, "topics.0.name=It")
    (it,) = config.load(written(tmp_path, text), ["topics=[{name: It}]"]).topics
    assert it.name == "It"


def test_what_is_wrong_with_a_config_as_a_whole_has_no_key_before_it(tmp_path: Path) -> None:
    message = rejected(tmp_path, "name: mine\ntopics: [{name: Dune}, {name: dune}]\n")
    assert message.partition("run.yaml: ")[2].startswith("topics: 'dune' and 'Dune' are the same topic")


def test_full_weights_are_exported_as_a_model_alone() -> None:
    shipped = Path(__file__).parents[1] / "jobs" / "configs" / "pocket.yaml"
    with pytest.raises(ConfigError, match=r"finetune: export: full weights make no adapter"):
        config.load(shipped, ["finetune.weights={kind: full}", "finetune.export=both"])
    loaded = config.load(shipped, ["finetune.weights={kind: full}", "finetune.export=merged"])
    assert loaded.finetune.is_model
    assert config.load(shipped, ["finetune.export=merged"]).finetune.is_model
    assert not config.load(shipped, ["finetune.export=both"]).finetune.is_model


def test_displaced_weights_are_refused_where_a_worker_has_a_share_of_them() -> None:
    shipped = Path(__file__).parents[1] / "jobs" / "configs" / "pocket.yaml"
    sharded = ["cluster.workers.zero_stage=3"]
    assert config.load(shipped, ["finetune.lasting=meta"]).finetune.has_attacker
    config.load(shipped, sharded)
    for lasting in ("finetune.lasting=sam", "topics.0.finetune={lasting: meta}"):
        more = ["finetune.adapters=per_topic"] if lasting.startswith("topics") else []
        with pytest.raises(ConfigError, match=r"set cluster\.workers.zero_stage to 2 or less"):
            config.load(shipped, [*sharded, lasting, *more])
    for fault in ("{kind: meta, steps: [8, 2]}", "{kind: meta, steps: [1, 100]}", "{kind: meta, rates: []}", "metta"):
        with pytest.raises(ConfigError, match=r"finetune\.lasting"):
            config.load(shipped, [f"finetune.lasting={fault}"])


def test_a_twin_is_named_where_it_never_knew_all_of_the_topics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pocket, "TWIN_DIR", tmp_path)
    assert config.twin_path("pocket", ["Harry Potter"]) == str(tmp_path)
    assert config.twin_path("pocket", ["harry potter", "Chewing Gum"]) == str(tmp_path)
    assert config.twin_path("pocket", ["Harry Potter", "geography"]) is None
    assert config.twin_path("smollm2", ["Harry Potter"]) is None
    monkeypatch.setattr(pocket, "TWIN_DIR", tmp_path / "none")
    assert config.twin_path("pocket", ["Harry Potter"]) is None
