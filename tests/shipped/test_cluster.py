"""Every file of cluster/ is read as its reader would, and all of them agree with the locks and with each other."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import CLUSTER, DOCKERFILE, RAY, ROOT, cluster_of, containers_of, first, groups_of, manifest, read
from ray._private.runtime_env.packaging import _get_ignore_file
from ray.autoscaler._private.aws.config import _check_ami
from ray.autoscaler._private.command_runner import DockerCommandRunner
from ray.autoscaler._private.util import prepare_config, validate_config

from unlearn_ray import __version__, config

HOME = first(r"^ENV HOME=(\S+)", DOCKERFILE)
USER = first(r"^USER (\S+)", DOCKERFILE)


# Virtual machines


@pytest.fixture(scope="module")
def aws() -> dict[str, Any]:
    prepared = prepare_config(read("aws.yaml"))
    validate_config(prepared)
    return prepared


class Node:
    """A node's shell, as Ray's runner of commands in containers meets it over ssh."""

    def __init__(self, config: dict[str, Any], has_gpu: bool) -> None:
        self.cluster_name, self.ssh_user = config["cluster_name"], config["auth"]["ssh_user"]
        self.has_gpu = has_gpu
        self.started: list[str] = []  # arguments of `docker run`

    def run(self, command: str, **options: object) -> bytes:
        if command.startswith("docker run"):
            self.started = shlex.split(command)
        if command.startswith("docker inspect") and ".Config.Env" in command:  # of the image
            return json.dumps(["PATH=/usr/local/bin", *environment()]).encode()
        if command.startswith("docker info"):
            return b"map[nvidia:{nvidia-container-runtime []} runc:{runc []}]"
        if command == "nvidia-smi" and not self.has_gpu:
            raise OSError("no driver runs")
        return b""


def environment() -> list[str]:
    """NAME=value of the image."""
    return [pair for line in re.findall(r"^ENV (.+)", DOCKERFILE, re.MULTILINE) for pair in shlex.split(line)]


def container(config: dict[str, Any], as_head: bool) -> list[str]:
    """The arguments with which `ray up`, or the head, starts the container of a node."""
    node = Node(config, has_gpu=not as_head)
    runner = DockerCommandRunner(
        config["docker"],
        log_prefix="",
        node_id="i-0",
        provider=None,
        auth_config=config["auth"],
        cluster_name=config["cluster_name"],
        process_runner=subprocess,
        use_internal_ip=False,
    )
    runner.ssh_command_runner = node
    runner.run_init(as_head=as_head, file_mounts=config["file_mounts"], sync_run_yet=True)
    return node.started


@pytest.mark.parametrize("as_head", [True, False])
def test_the_token_is_where_ray_looks_for_it_in_the_container(aws: dict[str, Any], as_head: bool) -> None:
    command = container(aws, as_head)
    mounted = [command[at + 1].rpartition(":")[2] for at, option in enumerate(command) if option == "-v"]
    assert f"{HOME}/.ray/auth_token" in mounted
    assert "--env=RAY_AUTH_MODE=token" in command
    assert not [option for option in command if "auth_token" in option and option.startswith("--env")]


def test_the_images_user_may_read_what_is_mounted_and_write_beside_it() -> None:
    """Files keep their permissions, 0600, and their owner, who is `ubuntu`, 1000 on Ubuntu; Docker makes missing folders as root's."""
    assert read("aws.yaml")["auth"]["ssh_user"] == "ubuntu" and USER == "1000"
    assert f"useradd --create-home --uid {USER} --shell /bin/bash {Path(HOME).name}" in DOCKERFILE
    made = first(r"install --directory --owner=ray --group=ray (.+?) &&", DOCKERFILE).split()
    commented = re.findall(r"^  (?:# )?(~/\S+): ~/", (CLUSTER / "aws.yaml").read_text(), re.MULTILINE)
    assert len(commented) == 2
    assert {str(Path(place).parent).replace("~", HOME) for place in commented} <= set(made)


def test_the_workers_containers_see_their_gpus(aws: dict[str, Any]) -> None:
    command = container(aws, as_head=False)
    assert "--runtime=nvidia" in command and "--env=NVIDIA_VISIBLE_DEVICES=all" in command
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in environment()


def test_no_image_or_head_asks_for_gpus_that_are_not_its_own(aws: dict[str, Any]) -> None:
    """A pod without a GPU would see all of its node's."""
    assert "NVIDIA_VISIBLE_DEVICES" not in DOCKERFILE
    assert not [option for option in container(aws, as_head=True) if "NVIDIA" in option or "nvidia" in option]


def test_an_image_is_named_for_every_node_and_ray_puts_in_none_of_its_own(aws: dict[str, Any]) -> None:
    kinds = aws["available_node_types"].values()
    before = [kind["node_config"]["ImageId"] for kind in kinds]
    _check_ami(aws)  # where Ray fills in its own
    assert [kind["node_config"]["ImageId"] for kind in kinds] == before
    for image in before:
        assert re.fullmatch(
            r"resolve:ssm:/aws/service/deeplearning/ami/x86_64/[a-z0-9.-]+-gpu-[a-z0-9.-]+/latest/ami-id", image
        )


def test_the_image_holds_what_rays_autoscaler_needs_on_aws() -> None:
    assert re.search(r"^boto3==", (ROOT / "locks" / "cuda.txt").read_text(), re.MULTILINE)


def test_ray_up_accepts_the_aws_file_and_installs_nothing(aws: dict[str, Any]) -> None:
    assert [*aws["setup_commands"], *aws["head_setup_commands"], *aws["worker_setup_commands"]] == []


def test_the_aws_cluster_scales_gpu_workers_from_none_beside_an_idle_head(aws: dict[str, Any]) -> None:
    types = aws["available_node_types"]
    workers = types[(set(types) - {aws["head_node_type"]}).pop()]
    assert types[aws["head_node_type"]]["resources"]["CPU"] == 0
    assert workers["resources"]["GPU"] == 8
    assert workers["min_workers"] == 0 < workers["max_workers"] == aws["max_workers"]


# Jobs


def entrypoints() -> list[str]:
    """The job command of every file, from its comments too, where a person copies it from."""
    found = [manifest("rayjob")["spec"]["entrypoint"]]
    for name in ("aws.yaml", "kuberay/raycluster.yaml"):
        commands = re.findall(r"python jobs/\S+ \S+\.yaml.*", (CLUSTER / name).read_text())
        assert len(commands) == 1, f"{name} shows no job"
        found += commands
    return found


@pytest.mark.parametrize("command", entrypoints())
def test_a_job_names_an_entry_point_and_a_run_that_loads(command: str) -> None:
    _, script, run, *overrides = shlex.split(command)
    assert (ROOT / script).is_file()
    assert config.load(ROOT / run, overrides).output == "s3://your-bucket/runs"


def test_the_job_runs_in_the_images_copy_of_the_repository() -> None:
    environment = yaml.safe_load(manifest("rayjob")["spec"]["runtimeEnvYAML"])
    assert environment == {"working_dir": first(r"^WORKDIR (\S+)", DOCKERFILE)}


def gpus_of(group: dict[str, Any]) -> int:
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return int(limits.get("nvidia.com/gpu", 0))


@pytest.mark.parametrize("command", entrypoints())
def test_a_pod_or_machine_holds_an_engine_and_a_training_fits_the_cluster(command: str, aws: dict[str, Any]) -> None:
    run = config.load(ROOT / shlex.split(command)[2])
    machine = aws["available_node_types"]["h100x8"]
    shapes = [(int(machine["resources"]["GPU"]), machine["max_workers"])]
    shapes += [
        (gpus_of(group), group["maxReplicas"]) for name in ("raycluster", "rayjob") for group in groups_of(name)[1:]
    ]
    for gpus, most in shapes:
        assert run.cluster.engines.tensor_parallel_size <= gpus
        assert run.cluster.workers.num_workers <= gpus * most


@pytest.mark.parametrize(
    ("path", "left_out"),
    [
        (".git/objects/ab", True),
        (".venv/bin/python", True),
        ("runs/pocket/report.json", True),
        ("jobs/run.py", False),
        ("jobs/configs/llama3-8b-lora.yaml", False),
        ("unlearn_ray/cli.py", False),
        ("unlearn_ray/pocket/model/model.safetensors", False),
    ],
)
def test_a_jobs_working_dir_holds_the_code_and_no_more(path: str, left_out: bool) -> None:
    ignores = [_get_ignore_file(ROOT, ignore_file=name) for name in (".gitignore", ".rayignore")]
    assert any(ignore(ROOT / path) for ignore in ignores if ignore) == left_out


def test_no_token_is_written_down_or_sent_with_a_job() -> None:
    """What is sent with a job (its entry point, its runtime_env) is shown by the Jobs API: a token comes from the nodes."""
    for path in [*CLUSTER.rglob("*.yaml"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        text = path.read_text()
        assert not re.search(r"\bhf_[A-Za-z0-9]{8,}", text), path.name
        assert not re.search(r"--runtime-env(-json)?\b[^\n]*TOKEN", text), path.name
    assert "HF_TOKEN" not in manifest("rayjob")["spec"]["entrypoint"] + manifest("rayjob")["spec"]["runtimeEnvYAML"]
    for name in ("raycluster", "rayjob", "rayservice"):
        for container in (
            container for group in groups_of(name) for container in group["template"]["spec"]["containers"]
        ):
            (token,) = (variable for variable in container["env"] if variable["name"] == "HF_TOKEN")
            assert set(token) == {"name", "valueFrom"} and set(token["valueFrom"]) == {"secretKeyRef"}


# The image


def test_the_image_is_built_from_the_cuda_lock_by_the_same_uv() -> None:
    uv = first(r"^UV_VERSION=(\S+)", (ROOT / "scripts" / "env.sh").read_text())
    assert f"uv=={uv}" in DOCKERFILE
    assert re.findall(r"--requirement (\S+)", DOCKERFILE) == ["locks/cuda.txt"]


def test_the_image_is_one_and_the_same_wherever_it_is_built() -> None:
    assert re.fullmatch(r"python:3\.11-bookworm@sha256:[0-9a-f]{64}", first(r"^FROM (.+)", DOCKERFILE))


def test_the_image_is_called_by_the_packages_version(aws: dict[str, Any]) -> None:
    assert aws["docker"]["image"].rpartition(":")[2] == __version__
    assert aws["docker"]["image"] == first(r"docker build .*--tag (\S+)", DOCKERFILE)


def test_the_image_copies_what_is_there() -> None:
    for line in re.findall(r"^COPY (.+)", DOCKERFILE, re.MULTILINE):
        *sources, _ = line.split()
        assert [source for source in sources if not (ROOT / source).exists()] == []


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not there: `make setup` installs it")
    done = subprocess.run([hadolint, "--no-color", CLUSTER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["raycluster", "rayjob", "rayservice"])
def test_a_kuberay_cluster_runs_the_locked_ray_in_the_one_image(name: str, aws: dict[str, Any]) -> None:
    assert cluster_of(name)["rayVersion"] == RAY
    assert {container["image"] for container in containers_of(name)} == {aws["docker"]["image"]}
