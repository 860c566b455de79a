"""Every option of the server, once: name, type, range, unit, default and meaning.

A new option is a new field; what an option is stands in `option.py`.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from msgspec import Meta

from dragoman_server.errors import StartError
from dragoman_server.option import About, Option, build, options_of, values_of
from dragoman_server.option_texts import (
    model_below,
    parse_address,
    parse_device,
    parse_endpoint,
    parse_model,
    parse_pivot,
)

_ADMIN_ADDRESS = "127.0.0.1:50052"  # loopback, as everywhere: what protects it has to be set up


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which models are served."""

    TITLE: ClassVar = "Models"

    model: Annotated[
        tuple[str, ...],
        About(
            "Model bundle to serve, a folder written by dragoman-export, under its own name or this one. May be given "
            "several times; in the variable, commas separate them.",
            "[NAME=]FOLDER",
            "the embedded model where there is no repository",
            check=parse_model,
            below=model_below,
        ),
    ] = ()
    repository: Annotated[
        Path | None,
        About(
            "Folder of model bundles to serve: NAME/ is a bundle, or has one for each version, NAME/VERSION/.",
            "FOLDER",
            "none",
        ),
    ] = None
    watch_seconds: Annotated[
        float,
        Meta(ge=0, le=86_400),
        About(
            "How often the repository is looked through for bundles that have come, changed or gone. 0: never.",
            "seconds",
        ),
    ] = 0.0
    max_model_bytes: Annotated[
        int,
        Meta(ge=0, le=2**50),
        About(
            "Memory for the weights of all models together. Models are loaded at their first use then, and those "
            "unused for the longest make room. 0: all models are loaded at the start.",
            "bytes",
        ),
    ] = 0
    trust_bundles: Annotated[
        bool,
        About(
            "Whether bundles are served without being tried. Else each is loaded by a process of its own first, with "
            "limits of memory and time, so that a graph that crashes, hangs or takes all memory ends that process "
            "alone. The embedded model is not tried.",
        ),
    ] = False
    pivot: Annotated[
        str,
        About(
            "The language that texts go through where no model translates a pair but two do by way of this language. "
            "auto: English, else the first other that serves. off: none.",
            "auto|off|LANGUAGE",
            check=parse_pivot,
        ),
    ] = "auto"

    # The SDK's Vocabulary, whose import would be that of gRPC: see __main__.py.
    vocabulary: Annotated[
        Literal["full", "language", "shortlist"],
        About(
            "What the tokens of translations are chosen from where a call does not say. full: all tokens of the model. "
            "language: the list of the target language. shortlist: for each segment, the likely translations of its "
            "tokens. Lists are faster and may change translations; a model without any such list is not served.",
            "vocabulary",
        ),
    ] = "full"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How much the decoding engine does at a time."""

    TITLE: ClassVar = "Capacity"

    device: Annotated[
        str,
        About(
            "Where models are decoded. cuda: bundles of fp16 and bf16 on the first GPU, those of int8 and fp32 are "
            "refused; cuda:0,1: on these GPUs, each segment on the least loaded. cpu: no GPU is used; fp16 is slow "
            "there. auto: fp16 and bf16 on the first GPU, or as with cpu where none can be used, and the log says why; "
            "int8 and fp32 on the CPU.",
            "auto|cpu|cuda|cuda:N[,M...]",
            check=parse_device,
        ),
    ] = "auto"
    lanes: Annotated[
        Literal["auto"] | Annotated[int, Meta(ge=1, le=1024)],
        About(
            "Batches decoded side by side, each by threads of its own. auto: one for each CPU that this process may "
            "use, by affinity and the quota of its container.",
            "lanes",
        ),
    ] = "auto"
    num_threads: Annotated[
        int,
        Meta(ge=0, le=1024),
        About(
            "Threads that compute a step of a lane. 0: as many as leave no CPU idle when all lanes are busy. With "
            "weights of 24 MiB and more, a lane that is alone at work takes all CPUs by a second copy; --lanes 1 "
            "does without it.",
            "threads",
        ),
    ] = 0
    max_running: Annotated[
        int,
        Meta(ge=1, le=4096),
        About(
            "Rows that a lane decodes together. A segment (a line or a sentence) takes one row, with beam search as "
            "many as its beam size; so this is also the largest beam. More rows need more memory.",
            "rows",
        ),
    ] = 128
    max_waiting: Annotated[
        int,
        Meta(ge=1, le=1_000_000),
        About(
            "Segments of calls that may queue on each device; a call that does not fit is refused with "
            "RESOURCE_EXHAUSTED at once. A quarter as many more are kept for callers who have little waiting, none of "
            "them for bulk work. Also the most segments of one call. The segments of ExchangeTranslations "
            "queue beside them: when there are as many, a stream that has its share is not read until it has less.",
            "segments",
        ),
    ] = 4096
    max_waiting_rows: Annotated[
        int,
        Meta(ge=1, le=100_000_000),
        About(
            "Rows that the segments in a queue may need together; likewise. A call that finds nothing waiting may need "
            "more.",
            "rows",
        ),
    ] = 16_384
    max_waiting_tokens: Annotated[
        int,
        Meta(ge=1, le=2**40),
        About(
            "Source tokens that the segments in a queue may have together; likewise. A call that finds nothing waiting "
            "may have more.",
            "tokens",
        ),
    ] = 1_048_576
    max_encoder_tokens: Annotated[
        int,
        Meta(ge=1, le=1_000_000),
        About(
            "Source tokens, with padding, that a lane encodes between two steps. Fewer delay running translations "
            "less, more start waiting ones sooner. A longer source is encoded alone.",
            "tokens",
        ),
    ] = 2048
    max_kv_bytes: Annotated[
        int,
        Meta(ge=0, le=2**50),
        About(
            "Memory that the keys and values of the running rows of all models may take up if all of them get as long "
            "as they may; other rows wait. On each GPU as much. 0: a quarter of the memory that this process may use, "
            "and half of a GPU's. A request over it by itself runs alone in its model.",
            "bytes",
        ),
    ] = 0

    max_arena_bytes: Annotated[
        int,
        Meta(ge=0, le=2**50),
        About(
            "Memory of a GPU that each graph of a model may take up for what its runs compute, beside weights, keys "
            "and values; a run that needs more fails. 0: as much as there is. A CPU has no limit.",
            "bytes",
        ),
    ] = 0

    cache_bytes: Annotated[
        int,
        Meta(ge=0, le=2**50),
        About(
            "Memory for the answers to segments, of all models together: who asks the same again has them at once, and "
            "what several ask at once is decoded once. What has not been used for longest makes room. 0: none.",
            "bytes",
        ),
    ] = 0

    def shape(self, num_cpus: int) -> tuple[int, int]:
        """The number of lanes on so many CPUs, and of threads of each lane."""
        lanes = max(1, num_cpus // (self.num_threads or 1)) if self.lanes == "auto" else self.lanes
        return lanes, self.num_threads or max(1, num_cpus // lanes)

    def misfit(self, cpus: float) -> str | None:
        """A sentence for the log where lanes and threads do not fit the CPUs that this process may use.

        Args:
            cpus: `machine.cpu_allowance`, which may be a fraction.
        """
        lanes, num_threads = self.shape(max(1, int(cpus)))
        if lanes * num_threads <= cpus:
            return None
        return (
            f"lanes ({lanes}) x num_threads ({num_threads}) is more than the {cpus:g} CPUs of this process: the kernel "
            "will stop threads again and again."
        )


@dataclass(frozen=True, slots=True)
class InputLimits:
    """The most that one call may ask for. The limits on tokens are the model's, in its bundle."""

    TITLE: ClassVar = "Limits of a call"

    max_inputs: Annotated[int, Meta(ge=1, le=1_000_000), About("Texts in one call.", "texts")] = 256
    max_text_characters: Annotated[
        int, Meta(ge=1, le=10_000_000), About("Unicode code points of one text.", "characters")
    ] = 20_000
    max_exchange_in_flight: Annotated[
        int,
        Meta(ge=1, le=1_000_000),
        About(
            "Segments of one ExchangeTranslations stream that are translated or wait for the caller's gRPC to take the "
            "result, which it does some megabytes ahead of the caller (in Python 4 MB), on the caller's machine; a "
            "blank text counts as one. At this number the stream is read no further, so this and the size of one text "
            "bound the memory that a slow reader takes of the server.",
            "segments",
        ),
    ] = 256
    max_attention_bytes: Annotated[
        int,
        Meta(ge=1024, le=2**40),
        About("Attention weights in one answer of GetAttention, as they are sent.", "bytes"),
    ] = 256 << 20
    max_message_bytes: Annotated[
        int,
        Meta(ge=1024, le=2**31 - 1),  # protobuf and gRPC count in signed 32 bits
        About(
            "One request message, also unpacked where it is compressed. The Python client sends no text of more than "
            "4,000,000 bytes.",
            "bytes",
        ),
    ] = 4 << 20


@dataclass(frozen=True, slots=True)
class AccessOptions:
    """Who may call, and what they may call."""

    TITLE: ClassVar = "Access"

    tls_certificate: Annotated[
        Path | None,
        About(
            "Certificate of the server in PEM form, with the chain below its authority's after it. Calls and "
            "administration take TLS alone then. Read again when it changes, as its key and the next one.",
            "FILE",
            "none, no TLS",
        ),
    ] = None
    tls_key: Annotated[
        Path | None,
        About("Its private key in PEM form, RSA or ECDSA, which not everybody may read.", "FILE", "none"),
    ] = None
    tls_client_ca: Annotated[
        Path | None,
        About(
            "Certificates in PEM form, of the authorities of callers. Who calls must have a certificate of one of them "
            "then (mutual TLS).",
            "FILE",
            "none, callers need no certificate",
        ),
    ] = None
    tokens: Annotated[
        Path | None,
        About(
            "File of those who may call, a token's name and digest with limits on each line, which dragoman-server "
            "make-token writes. Every call but those of health must carry a token then. Read again when it changes.",
            "FILE",
            "none, everybody may call",
        ),
    ] = None
    reflection: Annotated[
        bool,
        About(
            "Whether the server tells callers which services and messages it has (gRPC reflection), on the admin "
            "address too. Tools such as grpcurl need no .proto files then.",
        ),
    ] = False


@dataclass(frozen=True, slots=True)
class LogOptions:
    """What the log on stderr says."""

    TITLE: ClassVar = "Log"

    log_format: Annotated[
        Literal["console", "json"],
        About("Form of the log's lines on stderr. json: an object on each line.", "form"),
    ] = "console"
    log_text: Annotated[
        bool,
        About(
            "Whether the log has the texts and translations of calls, to find faults; they are in no line otherwise.",
        ),
    ] = False


@dataclass(frozen=True, slots=True)
class TracingOptions:
    """Where traces of calls are sent."""

    TITLE: ClassVar = "Tracing"

    otlp_endpoint: Annotated[
        str | None,
        About(
            "Collector of OpenTelemetry that traces of calls are sent to, by OTLP over gRPC; https is TLS. All else, "
            "such as the sampler, headers and the service's name, is said by the variables of OpenTelemetry, OTEL_*. "
            "Needs the extra tracing.",
            "http[s]://HOST:PORT",
            "none, no traces",
            check=parse_endpoint,
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class Config:
    """All options of `dragoman-server`."""

    TITLE: ClassVar = "Server"

    # Loopback, as without options everybody may call: other machines reach the server only if its user says so.
    listen: Annotated[
        str,
        About(
            "Address for gRPC. By default only this machine can call; 0.0.0.0:50051 opens the server to the network, "
            "where it should have TLS and tokens (docs/security.md). Port 0 takes a free one.",
            "HOST:PORT",
            check=parse_address,
        ),
    ] = "127.0.0.1:50051"
    metrics_listen: Annotated[
        str,
        About(
            "Address of the Prometheus page, http://HOST:PORT/metrics. Port 0 takes a free one.",
            "HOST:PORT",
            check=parse_address,
        ),
    ] = "127.0.0.1:9464"
    admin_listen: Annotated[
        str | None,
        About(
            "Address for gRPC calls that load and unload models. Whoever reaches it may do so, unless tokens are "
            "asked for. Port 0 takes a free one.",
            "HOST:PORT",
            "127.0.0.1:50052 with a repository, else none",
            check=parse_address,
        ),
    ] = None
    shutdown_grace_seconds: Annotated[
        float,
        Meta(ge=0, le=86_400),
        About(
            "Time from SIGTERM or Ctrl-C to the end of the process. Calls in flight have nearly all of it to finish. A "
            "second signal ends them at once.",
            "seconds",
        ),
    ] = 30.0
    models: ModelOptions = field(default_factory=ModelOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    limits: InputLimits = field(default_factory=InputLimits)
    access: AccessOptions = field(default_factory=AccessOptions)
    log: LogOptions = field(default_factory=LogOptions)
    tracing: TracingOptions = field(default_factory=TracingOptions)

    @property
    def admin_address(self) -> str | None:
        """Where models are loaded and unloaded; None is nowhere."""
        return self.admin_listen or (_ADMIN_ADDRESS if self.models.repository else None)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Config":
        """The configuration with these values by the options' names, and the defaults of the others."""
        config: Config = build(cls, values)
        return config


def validate(config: Config) -> None:
    """Checks all that can be checked without opening anything.

    Raises:
        StartError: a sentence for each option at fault, with its name, range and value.
    """
    values = values_of(config)
    faults = []
    for option in OPTIONS:
        try:
            option.read(values[option.name], option.name)
        except StartError as error:
            faults.append(str(error))
    for text, count in Counter(config.models.model).items():
        if count > 1:
            faults.append(f"model must be another folder each time; the one given twice is {text!r}.")
    if config.models.watch_seconds and config.models.repository is None:
        faults.append(f"watch_seconds must be 0 without a repository and is {config.models.watch_seconds:g}.")
    access = config.access
    if (access.tls_certificate is None) != (access.tls_key is None):
        given, missing = ("tls_key", "tls_certificate") if access.tls_key else ("tls_certificate", "tls_key")
        faults.append(f"{given} must come with {missing}, which is not given.")
    if access.tls_client_ca is not None and access.tls_certificate is None:
        faults.append("tls_client_ca must come with tls_certificate, which is not given.")
    if faults:
        raise StartError(" ".join(faults))


OPTIONS: Final = tuple(options_of(Config))

CONFIG_FILE: Final = Option(
    "config",
    Config.TITLE,
    Path | None,
    None,
    About(
        "Configuration file, in TOML: a key for each other option, named as its flag with underscores. Flags come "
        "before variables, variables before the file. A relative path in it counts from the folder of the file.",
        "FILE",
        "none",
    ),
)
