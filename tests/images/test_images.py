"""The images of deploy/, built by podman on a base from Debian's packages, so that no registry of images is needed.

The base has the Python of Debian in place of that of the base which the Dockerfiles name; all else is as they say.
"""

import contextlib
import json
import platform
import shutil
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dragoman import Client
from support.debian import unpack
from support.prometheus import free_address, program

pytestmark = pytest.mark.timeout(3600)

ROOT = Path(__file__).parents[2]
BASE_PACKAGES = ["base-files", "ca-certificates", "coreutils", "dash", "libc-bin", "libstdc++6"]
BASE_PACKAGES += ["python3-pip", "python3.13-venv"]
BASE = "localhost/dragoman-test-base"
IMAGE = "localhost/dragoman-test"
MEGABYTE = 1_000_000
PATIENCE_SECONDS = 300
# The names of architectures, Debian's and podman's, by what Linux calls them.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
OWN = ARCHITECTURES[platform.machine()]
# Where Debian's packages would put it when they are installed; this machine's may have an authority more.
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def podman(*arguments: str | Path) -> str:
    """What it prints; it says on stderr what it does."""
    return subprocess.run(
        [program("podman"), *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True
    ).stdout.strip()


@pytest.fixture(scope="module", params=["amd64", "arm64"])
def architecture(request: pytest.FixtureRequest) -> str:
    emulated = Path("/proc/sys/fs/binfmt_misc") / f"qemu-{'aarch64' if request.param == 'arm64' else 'x86_64'}"
    if request.param != OWN and not emulated.exists():
        pytest.skip(f"this machine does not run programs for {request.param}: on Debian 13, qemu-user-binfmt makes it")
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def image(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of the image for CPUs."""
    base, built = f"{BASE}:{architecture}", f"{IMAGE}:{architecture}"
    root = tmp_path_factory.mktemp("base")
    unpack(root, architecture, *BASE_PACKAGES)
    (root / "usr/bin/python").symlink_to("python3.13")
    shutil.copy(CERTIFICATES, root / "etc/ssl/certs")
    tar = root.with_suffix(".tar")
    subprocess.run(["tar", "--owner=0", "--group=0", "-C", root, "-cf", tar, "."], check=True)
    podman("import", f"--arch={architecture}", tar, base)
    tar.unlink()
    podman(
        "build",
        f"--platform=linux/{architecture}",
        "--isolation=chroot",
        "--format=docker",  # that of OCI has no health checks
        f"--build-arg=PYTHON_IMAGE={base}",
        "--file=deploy/Dockerfile",
        f"--tag={built}",
        ".",
    )
    yield built
    podman("image", "rm", "--force", built, base)


@dataclass(frozen=True)
class Container:
    name: str
    address: str
    metrics: str

    def run(self, *command: str) -> str:
        return podman("--runtime=runc", "exec", self.name, *command)


@pytest.fixture(scope="module")
def container(image: str) -> Iterator[Container]:
    """The server as docs/operations.md starts it, in the network of this machine, which needs nothing set up."""
    name, address, metrics = f"dragoman-{uuid.uuid4().hex}", free_address(), free_address()
    hardened = ["--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp", "--cap-drop=ALL"]
    hardened += ["--security-opt=no-new-privileges", "--network=host"]
    # Limits that podman may set on any machine; and no systemd, which would check health regularly.
    hardened += ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", "--health-interval=disable"]
    addresses = [f"--env=DRAGOMAN_LISTEN={address}", f"--env=DRAGOMAN_METRICS_LISTEN={metrics}"]
    podman(
        "--runtime=runc",
        "run",
        "--detach",
        f"--name={name}",
        *hardened,
        *addresses,
        f"--env=DRAGOMAN_ADDRESS={address}",
        image,
    )
    try:
        wait_until_it_serves(name, metrics)
        yield Container(name, address, metrics)
    finally:
        podman("rm", "--force", "--time=40", name)


def wait_until_it_serves(name: str, metrics: str) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < give_up:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{metrics}/metrics") as page:
            if "\ndragoman_serving 1.0\n" in page.read().decode():
                return
        (found,) = json.loads(podman("container", "inspect", name))
        if not found["State"]["Running"]:
            break
        time.sleep(1)
    pytest.fail(f"the server does not serve: {podman('logs', name)}")


def test_it_serves(container: Container) -> None:
    with Client(container.address, timeout=300) as client:
        assert client.translate("Good morning.", source="en", target="fr").text


def test_it_has_no_rights(container: Container) -> None:
    status = dict(line.split(":\t", 1) for line in container.run("cat", "/proc/1/status").splitlines())
    assert (status["Uid"].split(), status["Gid"].split()) == (["10001"] * 4, ["10001"] * 4)
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"


def test_it_can_write_nowhere_but_to_memory(container: Container) -> None:
    mounts = [line.split() for line in container.run("cat", "/proc/1/mounts").splitlines()]
    (options,) = (options for _, path, _, options, *_ in mounts if path == "/")
    assert "ro" in options.split(",")
    owned = container.run("python", "-c", "import os; print([p for p, *_ in os.walk('/opt') if os.access(p, os.W_OK)])")
    assert owned == "[]"


def test_its_health_check_works(container: Container, image: str) -> None:
    (found,) = json.loads(podman("image", "inspect", image))
    assert found["Config"]["User"] == "10001:10001"
    assert found["Healthcheck"]["Test"] == ["CMD", "dragoman", "health"]
    podman("healthcheck", "run", container.name)


def test_it_is_small(image: str) -> None:
    """Most of it is ONNX Runtime, the model and gRPC; pip and the sources stay in the stage that builds."""
    (found,) = json.loads(podman("image", "inspect", image))
    (base,) = json.loads(podman("image", "inspect", image.replace(IMAGE, BASE)))
    print(f"{image}: {found['Size'] / MEGABYTE:.0f} MB, {base['Size'] / MEGABYTE:.0f} MB of them its base")
    assert found["Size"] - base["Size"] < 300 * MEGABYTE


def test_it_ends_when_it_is_told_to(container: Container) -> None:
    podman("stop", "--time=40", container.name)
    (found,) = json.loads(podman("container", "inspect", container.name))
    assert found["State"]["ExitCode"] == 0
