"""The figures of a run as tables of the two READMEs, between the marks that are there for them.

python -m benchmarks.markdown    # after `make bench`
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.settings import RESULTS

_ROOT = Path(__file__).parent.parent
_NAMES = {"fp32": "float32"}
_Row = Mapping[str, Any]  # as `report.Row` is in the JSON file


def int8_comparisons(rows: Sequence[_Row]) -> list[_Row]:
    """Those of our int8 bundles and of what is compared with them, which follows them; float32 is left out."""
    kept, is_int8 = [], False
    for row in rows:
        if row["ratio"] is None:  # ours
            is_int8 = row["subject"]["precision"] == "int8"
        if is_int8:
            kept.append(row)
    return kept


def offline_table(rows: Sequence[_Row]) -> str:
    """How fast Dragoman is at int8, and how many times as fast as each peer; the lowest of each column is bold."""
    columns = _columns(rows)
    lines = _heading(["model", "", *columns.values()])
    for model in dict.fromkeys(row["subject"]["model"] for row in rows):
        own = [row for row in rows if row["subject"]["model"] == model]
        tokens = _by_column([row for row in own if row["ratio"] is None])
        lines.append(_line([model, "target tokens/s", *(_figure(tokens, column) for column in columns)]))
        peers = _by_peer(own)
        lowest = {
            column: min(by_column[column]["ratio"]["median"] for by_column in peers.values() if column in by_column)
            for column in columns
            if any(column in by_column for by_column in peers.values())
        }
        for peer, by_column in peers.items():
            cells = [_ratio(by_column, column, lowest) for column in columns]
            lines.append(_line(["", f"against {peer}", *cells]))
    return "\n".join(lines)


def settings_table(rows: Sequence[_Row]) -> str:
    """The settings that were found to be the best for each peer."""
    columns = _columns(rows)
    lines = _heading(["model", "peer", *columns.values()])
    for model in dict.fromkeys(row["subject"]["model"] for row in rows):
        for peer, by_column in _by_peer([row for row in rows if row["subject"]["model"] == model]).items():
            cells = [by_column[column]["subject"]["setting"] if column in by_column else "" for column in columns]
            if any(cells):
                lines.append(_line([model, peer, *cells]))
    return "\n".join(lines)


def served_table(rows: Sequence[_Row]) -> str:
    """Figures of the servers that are no points of a curve."""
    systems = list(dict.fromkeys(_peer(row["subject"]) for row in rows))
    lines = _heading(["figure", *systems])
    figures = [row for row in rows if not row["variable"]]
    for metric, unit in dict.fromkeys((row["metric"], row["unit"]) for row in figures):
        by_system = {_peer(row["subject"]): row for row in figures if row["metric"] == metric}
        cells = [_number(by_system[name]["value"]["median"]) if name in by_system else "" for name in systems]
        lines.append(_line([f"{metric}, {unit}", *cells]))
    return "\n".join(lines)


def steps_table(rows: Sequence[_Row]) -> str:
    """Figures of steps by batch, and below them those that have none."""
    batches = sorted({row["batch"] for row in rows if row["batch"] is not None})
    lines = _heading(["model", "figure", *map(str, batches)])
    of_batches = [row for row in rows if row["batch"] is not None]
    for model, metric, setting, unit in dict.fromkeys(map(_step_figure, of_batches)):
        by_batch = {
            row["batch"]: _number(row["value"]["median"])
            for row in of_batches
            if _step_figure(row) == (model, metric, setting, unit)
        }
        figure = f"{metric}, {setting}" if setting else metric
        lines.append(_line([model, f"{figure}, {unit}", *(by_batch.get(batch, "") for batch in batches)]))
    others = [row for row in rows if row["batch"] is None]
    lines += ["", *(f"{_of(row)}{row['metric']}: {_number(row['value']['median'])} {row['unit']}." for row in others)]
    return "\n".join(lines)


def _step_figure(row: _Row) -> tuple[str, str, str, str]:
    subject = row["subject"]
    return subject["model"], row["metric"], subject["setting"], row["unit"]


def _of(row: _Row) -> str:
    model = row["subject"]["model"]
    return f"{model}, " if model else ""


def with_table(text: str, name: str, table: str) -> str:
    """The text with what stands between the marks of a table replaced.

    Raises:
        ValueError: the marks are not there.
    """
    begin, end = f"<!-- {name}: written by benchmarks.markdown -->", f"<!-- {name}: end -->"
    if begin not in text or end not in text:
        raise ValueError(f"{begin} and {end} are not there")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"


# -- parts of tables -------------------------------------------------------------------------------------------------


def _columns(rows: Sequence[_Row]) -> dict[tuple[int, int], str]:
    """By beam and batch, in the order of the table."""
    largest = max((row["batch"] for row in rows if row["metric"] == "throughput"), default=0)
    sizes = sorted({(row["beam"], row["batch"]) for row in rows})
    files = [size for size in sizes if size[1] > largest]
    return {
        (beam, batch): f"file of {batch}" if batch > largest else f"{batch} x {beam}"
        for beam, batch in [*(size for size in sizes if size not in files), *files]
    }


def _by_column(rows: Sequence[_Row]) -> dict[tuple[int, int], _Row]:
    return {(row["beam"], row["batch"]): row for row in rows}


def _by_peer(rows: Sequence[_Row]) -> dict[str, dict[tuple[int, int], _Row]]:
    peers = dict.fromkeys(_peer(row["subject"]) for row in rows if row["ratio"] is not None)
    return {peer: _by_column([row for row in rows if row["ratio"] and _peer(row["subject"]) == peer]) for peer in peers}


def _peer(subject: Mapping[str, Any]) -> str:
    return f"{subject['system']} {_NAMES.get(subject['precision'], subject['precision'])}"


def _figure(by_column: Mapping[tuple[int, int], _Row], column: tuple[int, int]) -> str:
    return _number(by_column[column]["value"]["median"]) if column in by_column else ""


def _ratio(
    by_column: Mapping[tuple[int, int], _Row], column: tuple[int, int], lowest: Mapping[tuple[int, int], float]
) -> str:
    if column not in by_column:
        return ""
    median = by_column[column]["ratio"]["median"]
    return f"**{median:.2f}**" if median == lowest[column] else f"{median:.2f}"


def _number(value: float | None) -> str:
    if value is None:
        return "failed"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _heading(cells: Sequence[str]) -> list[str]:
    return [_line(cells), "|" + "---|" * len(cells)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


# -- the command -----------------------------------------------------------------------------------------------------


def main(
    results: Annotated[Path, typer.Option(help="File that `make bench` wrote.")] = RESULTS / "bench.json",
    root: Annotated[Path, typer.Option(help="Folder of the project.")] = _ROOT,
) -> None:
    """Write the figures of a run to README.md and benchmarks/README.md."""
    document = json.loads(results.read_text(encoding="utf-8"))
    rows = document["rows"]
    int8 = int8_comparisons([row for row in rows if row["part"] == "offline"])
    packages = document["packages"]
    caption = (
        f"{document['processor']}, {int8[0]['subject']['threads']} threads, {document['measured'][:10]}, "
        f"ONNX Runtime {packages['onnxruntime']}, CTranslate2 {packages['ctranslate2']}.\n\n"
    )
    served = [row for row in rows if row["part"] == "served"]
    for file, tables in (
        ("README.md", {"offline": caption + offline_table(int8)}),
        (
            "benchmarks/README.md",
            {"settings": caption + settings_table(int8), **({"served": served_table(served)} if served else {})},
        ),
    ):
        path = root / file
        text = path.read_text(encoding="utf-8")
        for name, table in tables.items():
            text = with_table(text, name, table)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
