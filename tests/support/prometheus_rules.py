"""The PrometheusRules of deploy/kubernetes, made from deploy/prometheus. Running this file writes them."""

from pathlib import Path

_ROOT = Path(__file__).parents[2]
SOURCES = [_ROOT / "deploy/prometheus" / name for name in ("rules.yml", "alerts.yml")]
OBJECTS = _ROOT / "deploy/kubernetes/components/monitoring/rules.yaml"

# Names of groups are unique in an object as in a file, so each file is one.
_HEAD = """\
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: dragoman-{stem}
  labels: {{app.kubernetes.io/name: dragoman}}
spec:
"""


def objects() -> str:
    """The text of the objects, with the comments of the files."""
    return "---\n".join(
        f"# Written by tests/support/prometheus_rules.py from deploy/prometheus/{source.name}.\n"
        + _HEAD.format(stem=source.stem)
        + "".join(f"  {line}" if line.strip() else line for line in source.read_text().splitlines(keepends=True))
        for source in SOURCES
    )


if __name__ == "__main__":
    OBJECTS.write_text(objects())
