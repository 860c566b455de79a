"""Servers in processes of their own, and the load that is put on them."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.load import Job, Outcome, drive
from benchmarks.models import Model
from benchmarks.report import Row, Subject
from benchmarks.settings import SOURCE_LANGUAGE, TARGET_LANGUAGE, Settings
from benchmarks.statistics import Summary
from benchmarks.systems import Decoding, Source
from dragoman import Client, Vocabulary
from dragoman_server.runtime.machine import available_cpus

_NUM_TEXTS = 128  # at a time keep both servers' batches full


@dataclass(frozen=True)
class Server:
    """A running server."""

    subject: Subject
    address: str
    pid: int
    ca: str | None = None
    """Path of its authority, where it has TLS."""
    token: str | None = None

    def drive(self, settings: Settings, rate: float | None = None, num_callers: int = 1, seed: int = 0) -> Outcome:
        """Puts load on it: open with a rate, closed without."""
        time.sleep(settings.settle_seconds)
        return drive(self._job(settings, rate, num_callers, seed=seed))

    def saturate(self, settings: Settings, num_callers: int = _NUM_TEXTS, texts_per_call: int = 1) -> Outcome:
        """As much load as it takes, or as these callers are."""
        time.sleep(settings.settle_seconds)
        return drive(self._job(settings, None, num_callers, texts_per_call=texts_per_call))

    def _job(
        self, settings: Settings, rate: float | None, num_callers: int, texts_per_call: int = 1, seed: int = 0
    ) -> Job:
        return Job(
            self.address,
            settings.sentences,
            settings.load_seconds,
            rate,
            num_callers,
            texts_per_call,
            seed=seed,
            ca=self.ca,
            token=self.token,
        )

    def row(self, metric: str, unit: str, value: Summary, ratio: Summary | None = None) -> Row:
        """A figure of this server."""
        return Row("served", self.subject, metric, unit, value, ratio=ratio)


@dataclass(frozen=True, eq=False)
class ServedSystem:
    """A server that is called with the texts whose ids the peers get."""

    subject: Subject
    client: Client
    texts: Mapping[Source, str]
    vocabulary: Vocabulary = "full"

    def translate(self, batch: Sequence[Source], decoding: Decoding) -> list[Sequence[int]]:
        """The best targets."""
        translations = self.client.translate(
            [self.texts[source] for source in batch],
            source=SOURCE_LANGUAGE,
            target=TARGET_LANGUAGE,
            beam_size=decoding.beam_size,
            min_target_tokens=decoding.min_target_tokens,
            max_target_tokens=decoding.max_target_tokens,
            vocabulary=self.vocabulary,
        )
        return [translation.token_ids for translation in translations]


def dragoman_server(
    model: Model, settings: Settings, *others: str, log: int | None = None
) -> contextlib.AbstractContextManager[Server]:
    """Runs with other options, too, until the context ends; `log` is as in `serving`."""
    options = ["--model", str(model.bundle.folder), "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    options += others
    if settings.threads != available_cpus():
        options += ["--lanes", str(settings.threads), "--num-threads", "1"]
    precision = model.bundle.manifest.precision
    subject = Subject.of("Dragoman server", "dragoman", precision, settings.threads, model.name)
    return serving(subject, "dragoman_server", options, log=log)


@contextlib.contextmanager
def serving(
    subject: Subject, module: str, options: Sequence[str], log: int | None = None, **environment: str
) -> Iterator[Server]:
    """Runs a server in a process; it must print its address when it is ready.

    Args:
        subject: what to call it.
        module: to run.
        options: on its command line.
        log: descriptor for its stderr, in place of that of this process.
        environment: variables that it has beside those of this process.
    """
    command = [sys.executable, "-m", module, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | environment)
    with process:
        try:
            assert process.stdout is not None
            ready = re.search(r" on (127\.0\.0\.1:\d+)", process.stdout.readline())
            if ready is None:
                raise RuntimeError(f"{subject.system} did not start")
            yield Server(subject, ready[1], process.pid)
        finally:
            process.kill()
