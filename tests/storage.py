"""Storage that speaks as Amazon's and Google's do, on loopback."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import boto3
from moto.server import ThreadedMotoServer

from unlearn_ray.serving.service import free_port


class Storage(NamedTuple):
    bucket: str  # where s3:// or gs:// leads, for who has the environment
    endpoint: str  # host:port
    environment: Mapping[str, str]


@contextmanager
def s3() -> Iterator[Storage]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url, key, secret, region = f"http://{host}:{port}", "test", "test", "us-east-1"
    client = boto3.client(
        "s3", endpoint_url=url, aws_access_key_id=key, aws_secret_access_key=secret, region_name=region
    )
    client.create_bucket(Bucket="bucket")
    environment = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_DEFAULT_REGION": region}
    yield Storage("s3://bucket", f"{host}:{port}", environment | {"AWS_ENDPOINT_URL": url})
    server.stop()


@contextmanager
def gs() -> Iterator[Storage]:
    """Its server is a process of its own: in this one it and Arrow wait for each other."""
    endpoint = f"127.0.0.1:{free_port()}"
    host, port = endpoint.split(":")
    server = Path(sys.executable).with_name("gcp-storage-emulator")
    command: list[str | Path] = [
        server,
        "start",
        "--host",
        host,
        "--port",
        port,
        "--quiet",
        "--in-memory",
        "--default-bucket",
        "bucket",
    ]
    with subprocess.Popen(command) as process:
        try:
            while not _listening(host, int(port)):
                assert process.poll() is None, "the server ended"
                time.sleep(0.1)
            environment = {"CLOUD_STORAGE_EMULATOR_ENDPOINT": f"http://{endpoint}"}
            yield Storage("gs://anonymous@bucket", endpoint, environment)
        finally:
            process.kill()


def _listening(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0
