"""The compose file is one, and needs nothing outside the repository."""

import subprocess
from pathlib import Path

import pytest
import yaml

from support.prometheus import program

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"


@pytest.mark.parametrize("profile", ["", "gpu", "cluster", "load"])
def test_compose_accepts_it(profile: str) -> None:
    profiles = ("--profile", profile) if profile else ()
    subprocess.run([program("docker-compose"), "--file", COMPOSE, *profiles, "config", "--quiet"], check=True)


def test_what_is_mounted_is_in_the_repository() -> None:
    compose = yaml.safe_load(COMPOSE.read_text())
    volumes = [volume for service in compose["services"].values() for volume in service.get("volumes", ())]
    sources = [volume.partition(":")[0] for volume in volumes if not volume.startswith("$")]
    assert {name for name in sources if not name.startswith("./")} == compose["volumes"].keys()
    assert all((ROOT / name).exists() for name in sources if name.startswith("./")), sources


def test_every_image_is_pinned_or_built() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    built = {service["image"] for service in services.values() if "build" in service}
    assert {service["image"] for service in services.values() if ":" not in service["image"]} == built
