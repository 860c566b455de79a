"""Results as they come: a run that is cut off keeps what it has."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.markdown import offline_table, served_table, steps_table
from benchmarks.report import Row, to_json

NAME = "gpu"


@dataclass
class Results:
    """Rows, written to a folder with each that is added."""

    folder: Path
    facts: Mapping[str, str]
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """What was not measured, and why."""

    def add(self, row: Row) -> None:
        """Prints the figure as well, in few words."""
        self.rows.append(row)
        subject = row.subject
        size = "" if row.batch is None else f", {row.batch} x {row.beam}"
        ratio = f", Dragoman is {row.ratio.median:.2f} times as fast" if row.ratio else ""
        print(
            f"{subject.model or subject.system} {subject.system} {subject.setting}{size}: {row.metric} "
            f"{row.value.median:.4g} {row.unit}{ratio}",
            flush=True,
        )
        self._write()

    def leave_out(self, name: str, reason: str) -> None:
        """Remembers why something has no figures."""
        self.left_out[name] = reason
        self._write()

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        document = to_json(self.rows, **self.facts, left_out=self.left_out)
        (self.folder / f"{NAME}.json").write_text(document, encoding="utf-8")
        (self.folder / f"{NAME}.md").write_text(self._markdown(), encoding="utf-8")

    def _markdown(self) -> str:
        rows: Sequence[dict[str, Any]] = [asdict(row) for row in self.rows]
        parts = {name: [row for row in rows if row["part"] == name] for name in ("steps", "offline", "served")}
        card = ", ".join(f"{name} {value}" for name, value in self.facts.items() if value)
        tables = {"steps": steps_table, "offline": offline_table, "served": served_table}
        texts = [f"{card}.", *(tables[name](of_part) for name, of_part in parts.items() if of_part)]
        texts += [f"Not measured: {name}: {reason}." for name, reason in self.left_out.items()]
        return "\n\n".join(texts) + "\n"
