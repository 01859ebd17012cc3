"""`unlearn-ray attack` on the quickstart's run, in a process of its own, on real engines."""

import shutil
from pathlib import Path

from commandline import Run, unlearn

from unlearn_ray.artifacts import Folder
from unlearn_ray.attacks.prompt import WORST
from unlearn_ray.attacks.templates import load_kinds
from unlearn_ray.evals.attacked import read_attacks

KEPT = {"plain", "answer_prefill", "in_context_facts"}  # one that begins the answer, one of many turns


def test_prompts_are_put_to_the_three_models_and_an_answer_goes_on_where_it_was_begun(
    quickstart: Run, tmp_path: Path
) -> None:
    shutil.copytree(quickstart.folder.local, tmp_path / "runs" / "pocket", ignore=shutil.ignore_patterns("logs"))
    few = tmp_path / "few.yaml"
    few.write_text("".join(f"{name}: null\n" for name in load_kinds(None) if name not in KEPT))
    done = unlearn("attack", "pocket", "--only", "prompt", "--facts", "6", "--prompts", few, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "prompt: facts told" in done.stdout

    home = Folder(tmp_path / "runs" / "pocket" / "models" / "joint")
    recall = {(each.setting, each.model): each.value for each in read_attacks(home / "evaluate")}
    assert {setting for setting, _ in recall} == {*KEPT, WORST}
    assert recall["plain", "base"] > 0.8 and recall["answer_prefill", "base"] > 0.8
    assert recall["plain", "unlearned"] < 0.2 and recall["plain", "guarded"] < 0.2
    begun = [row for row in (home / "attacks/prompt/answers").read_rows() if row["kind"] == "answer_prefill"]
    heads = {row["probe_id"]: row["prompt"].rpartition("assistant: ")[2] for row in begun}
    assert begun and all(row["answers"][0].startswith(heads[row["probe_id"]]) for row in begun)
