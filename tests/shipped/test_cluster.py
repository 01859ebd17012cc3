"""Every file of cluster/ is read as its reader would, and all of them agree with the locks and with each other."""

import re
import shlex
from typing import Any

import pytest
import yaml
from manifests import CLUSTER, DOCKERFILE, RAY, ROOT, RayJob, cluster_of, first, read
from ray._private.runtime_env.packaging import _get_ignore_file
from ray.autoscaler._private.util import prepare_config, validate_config

from unlearn_ray import config

KUBERAY = ["kuberay/raycluster.yaml", "kuberay/rayjob.yaml", "kuberay/rayservice.yaml"]


@pytest.fixture(scope="module")
def aws() -> dict[str, Any]:
    prepared = prepare_config(read("aws.yaml"))
    validate_config(prepared)
    return prepared


def test_ray_up_accepts_the_aws_file_and_installs_no_ray_of_its_own(aws: dict[str, Any]) -> None:
    kept = [*aws["setup_commands"], *aws["head_setup_commands"], *aws["worker_setup_commands"]]
    assert not [command for command in kept if "ray" in command]


def test_the_aws_cluster_scales_gpu_workers_from_none_beside_an_idle_head(aws: dict[str, Any]) -> None:
    types = aws["available_node_types"]
    workers = types[(set(types) - {aws["head_node_type"]}).pop()]
    assert types[aws["head_node_type"]]["resources"]["CPU"] == 0
    assert workers["resources"]["GPU"] == 8
    assert workers["min_workers"] == 0 < workers["max_workers"] == aws["max_workers"]


def test_the_aws_cluster_asks_for_a_token(aws: dict[str, Any]) -> None:
    assert "--env=RAY_AUTH_MODE=token" in aws["docker"]["run_options"]
    assert "~/.ray/auth_token" in aws["file_mounts"]


@pytest.mark.parametrize("name", KUBERAY)
def test_a_kuberay_cluster_runs_the_locked_ray_in_the_one_image(name: str, aws: dict[str, Any]) -> None:
    cluster = cluster_of(name)
    assert cluster.rayVersion == RAY
    assert {container.image for container in cluster.containers} == {aws["docker"]["image"]}


@pytest.mark.parametrize("name", KUBERAY)
def test_a_kuberay_pod_gets_what_it_asks_for_and_workers_scale(name: str) -> None:
    cluster = cluster_of(name)
    assert all(container.resources.requests == container.resources.limits for container in cluster.containers)
    for group in cluster.workerGroupSpecs:
        assert group.minReplicas <= group.replicas < group.maxReplicas
        for container in group.template.spec.containers:
            assert container.resources.limits["nvidia.com/gpu"] == "8"


@pytest.mark.parametrize("name", ["kuberay/rayjob.yaml", "kuberay/rayservice.yaml"])
def test_a_job_and_the_service_run_on_the_same_cluster_as_the_one_that_stays(name: str) -> None:
    def shape(name: str) -> dict[str, Any]:
        cluster = cluster_of(name).model_dump()
        for group in cluster["workerGroupSpecs"]:
            del group["replicas"], group["minReplicas"]
        return cluster

    assert shape(name) == shape("kuberay/raycluster.yaml")


def entrypoints() -> list[str]:
    """The job command of every file, from its comments too, where a person copies it from."""
    found = [RayJob.model_validate(read("kuberay/rayjob.yaml")).spec.entrypoint]
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
    environment = yaml.safe_load(RayJob.model_validate(read("kuberay/rayjob.yaml")).spec.runtimeEnvYAML)
    assert environment == {"working_dir": first(r"^WORKDIR (\S+)", DOCKERFILE)}


def test_the_image_is_built_from_the_cuda_lock_by_the_same_uv() -> None:
    uv = first(r"^UV_VERSION=(\S+)", (ROOT / "scripts" / "env.sh").read_text())
    assert f"uv=={uv}" in DOCKERFILE
    assert "--requirement locks/cuda.txt" in DOCKERFILE
    assert "FROM python:3.11-" in DOCKERFILE


def test_the_image_copies_what_is_there() -> None:
    for line in re.findall(r"^COPY (.+)", DOCKERFILE, re.MULTILINE):
        *sources, _ = line.split()
        assert [source for source in sources if not (ROOT / source).exists()] == []


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
