"""The output of a long run, with which another run goes on wherever the first ended: `translate --resume`.

Lines go to OUTPUT.part. Beside it OUTPUT.part.json says what they are made of, and how many of them are on disk. A run
that was ended, be it by SIGKILL or a loss of power, leaves both: the next one cuts OUTPUT.part where the record says,
and goes on there. At the end OUTPUT.part becomes OUTPUT, which so is there in full or not at all.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import typer

from dragoman.cli.answers import Tally, write_all
from dragoman.cli.lines import Input, read_lines
from dragoman.cli.patience import Answer, Patient
from dragoman.errors import FailedPreconditionError
from dragoman.types import Translation

# A record takes a disk some milliseconds; what follows the last one is translated again.
_SECONDS_PER_RECORD = 1.0
_READ_BYTES = 1024 * 1024


def translate_file(
    source: Path,
    path: Path,
    options: Mapping[str, Any],
    ask: Callable[[list[Input]], Sequence[Answer]],
    show: Callable[[Translation], str],
    remark: Callable[[Translation], str],
    *,
    as_json: bool,
    num_calls: int,
) -> int:
    """Translates a file line by line, or what an earlier run has left of it; returns how many lines failed.

    The lines are the same whether it is one run or several: see `Patient` and `ResumableOutput`.

    Args:
        source: the file.
        path: of the output.
        options: as for `ResumableOutput`.
        ask: gives the results of some lines, in order; is called on threads.
        show: as for `write_all`, and so are the others.
        remark: likewise.
        as_json: likewise.
        num_calls: likewise.

    Raises:
        typer.BadParameter: the output cannot be that of the source and the options.
        DragomanError: the rest cannot be translated now.
    """
    with ResumableOutput(path, source, options) as output, source.open("rb") as file:

        def shown(result: Translation) -> str:
            output.check_model(f"{result.pivot.model}, {result.model}" if result.pivot else result.model)
            return show(result)

        if not output.is_complete:
            patient = Patient(ask)
            lines = islice(chain.from_iterable(read_lines(file)), output.tally.num_done, None)
            try:
                write_all(
                    [lines],
                    output.num_lines,
                    patient,
                    shown,
                    output,
                    as_json=as_json,
                    is_visible=True,
                    remark=remark,
                    num_calls=num_calls,
                    tally=output.tally,
                )
            finally:
                patient.is_over.set()
            output.finish()
        return output.tally.num_failed


@dataclass(frozen=True, slots=True)
class Source:
    """The contents of a file of lines."""

    num_lines: int
    num_bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """Reads the file."""
        digest, num_lines, num_bytes, last = hashlib.sha256(), 0, 0, b"\n"
        with path.open("rb") as file:
            while chunk := file.read(_READ_BYTES):
                digest.update(chunk)
                num_lines += chunk.count(b"\n")
                num_bytes += len(chunk)
                last = chunk
        return cls(num_lines + (not last.endswith(b"\n")), num_bytes, digest.hexdigest())


@dataclass(slots=True)
class _Record:
    """What is on disk, and what it is made of."""

    source: Source
    options: Mapping[str, Any]
    model: str = ""
    num_lines: int = 0
    num_failed: int = 0
    num_bytes: int = 0
    is_complete: bool = False

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The record in a file; None where there is none.

        Raises:
            typer.BadParameter: the file is something else.
        """
        try:
            values = json.loads(path.read_bytes())
            return cls(**{**values, "source": Source(**values["source"])})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):
            raise typer.BadParameter(f"{path} is not the record of a run.") from None

    def write(self, path: Path) -> None:
        """Replaces the record in a file, or leaves the one before."""
        new = path.with_name(path.name + ".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(asdict(self), file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)


class ResumableOutput:
    """Where the lines of a run go; as a context manager, it begins the output or goes on with it.

    Args:
        path: of the output.
        source: the file that is translated.
        options: what else the lines depend on, as JSON has it.

    Attributes:
        tally: the lines that are written, by earlier runs too.
        num_lines: how many there are to be.
        is_complete: whether an earlier run has written all of them.

    Raises:
        typer.BadParameter: by entering: the output is there, another run is writing it, or it was begun from another
            source or with other options.
    """

    def __init__(self, path: Path, source: Path, options: Mapping[str, Any]) -> None:
        self.tally = Tally()
        self.is_complete = False
        self._path, self._source_path = path, source
        self._part, self._record_path = (path.with_name(path.name + end) for end in (".part", ".part.json"))
        self._record = _Record(Source.of(source), json.loads(json.dumps(options)))
        self._file: BinaryIO | None = None
        self._model, self._num_bytes, self._recorded_at = "", 0, 0.0

    @property
    def num_lines(self) -> int:
        """How many lines there are to be."""
        return self._record.source.num_lines

    def __enter__(self) -> Self:
        before = _Record.read(self._record_path)
        if before is None:
            self._check_is_new()
        else:
            self._check_is_same(before)
            if before.is_complete and self._path.exists() and not self._part.exists():
                # It ended between the last two steps of `finish`.
                self._record_path.unlink()
                self.is_complete = True
        if before is not None:
            self._record = before
            self._model, self._num_bytes = before.model, before.num_bytes
            self.tally = Tally(before.num_lines, before.num_failed)
        if not self.is_complete:
            self._open()
        return self

    def _open(self) -> None:
        with ExitStack() as stack:
            file = stack.enter_context(self._part.open("ab"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise typer.BadParameter(f"Another run is writing {self._part}.") from None
            if file.tell() < self._num_bytes:
                raise typer.BadParameter(f"{self._part} is shorter than it was. {self._begin_anew}")
            file.truncate(self._num_bytes)
            self._record.write(self._record_path)
            self._file = file
            stack.pop_all()

    def write(self, line: bytes) -> None:
        """Takes a line. It counts from the next `flush` on."""
        self._opened.write(line)
        self._num_bytes += len(line)

    def flush(self) -> None:
        """What is written and tallied by now belongs together."""
        self._opened.flush()
        self._record.model = self._model
        self._record.num_lines, self._record.num_failed = self.tally.num_done, self.tally.num_failed
        self._record.num_bytes = self._num_bytes
        if time.monotonic() - self._recorded_at > _SECONDS_PER_RECORD:
            self._save()

    def check_model(self, model: str) -> None:
        """To be told which model each translation is by.

        Raises:
            FailedPreconditionError: it is not the one of those before.
        """
        if self._model not in ("", model):
            raise FailedPreconditionError(
                f"this translation is by {model}, and those before are by {self._model}: the model was replaced, or not"
                f" all servers have the same. {self._begin_anew}"
            )
        self._model = model

    def finish(self) -> None:
        """All lines are written: the output is there now.

        Raises:
            FailedPreconditionError: the source was changed meanwhile.
        """
        if Source.of(self._source_path) != self._record.source:
            raise FailedPreconditionError(f"{self._source_path} was changed while it was read. {self._begin_anew}")
        self._record.is_complete = True
        self._save()
        self._part.replace(self._path)
        self._record_path.unlink()
        self.is_complete = True

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is None:
            return
        with suppress(OSError), self._file:  # who cannot write is told so already
            if not self.is_complete:
                self._save()

    @property
    def _opened(self) -> BinaryIO:
        assert self._file is not None
        return self._file

    def _save(self) -> None:
        os.fsync(self._opened.fileno())
        self._record.write(self._record_path)
        self._recorded_at = time.monotonic()

    @property
    def _begin_anew(self) -> str:
        return f"To begin anew, remove {self._part} and {self._record_path}."

    def _check_is_new(self) -> None:
        if self._path.exists():
            raise typer.BadParameter(f"{self._path} is there already, and --resume overwrites nothing.")
        if self._part.exists() and self._part.stat().st_size:
            raise typer.BadParameter(f"{self._part} is there, and {self._record_path}, which says of what, is not.")

    def _check_is_same(self, before: _Record) -> None:
        if before.source != self._record.source:
            raise typer.BadParameter(
                f"{self._part} is of another input: {self._source_path} was changed, or is another file."
                f" {self._begin_anew}"
            )
        names = sorted(before.options.keys() | self._record.options.keys())
        pairs = {name: (before.options.get(name), self._record.options.get(name)) for name in names}
        if others := [f"{name} was {old!r} and is {new!r}" for name, (old, new) in pairs.items() if old != new]:
            raise typer.BadParameter(
                f"{self._part} was begun with other options: {', '.join(others)}. {self._begin_anew}"
            )
