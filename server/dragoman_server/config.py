"""Every option of the server, once: its meaning, unit and default. `validate` says what is wrong."""

from dataclasses import dataclass, field
from pathlib import Path

from dragoman_server.errors import StartError


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How much the decoding engine does at a time."""

    max_running: int = 64
    """Rows that a lane decodes together in one step. A segment takes one, with beam search as many
    as its beam size; so this is also the largest beam."""

    max_waiting: int = 4096
    """Segments of calls that may queue for a place among the running; more are refused at once.
    Also the most segments of one call. Those of streams queue beside them: when there are as
    many, streams that have their share are not read from until they have less."""

    max_encoder_tokens: int = 2048
    """Source tokens, with padding, that a lane encodes between two steps: what new arrivals may
    delay its running rows by. A longer source is encoded alone."""

    max_kv_bytes: int = 0
    """Memory that the keys and values of the running rows may come to take up, were all of
    them as long as they may get; others wait. 0: as much as `max_running` rows need. A
    request that is over it by itself runs alone."""

    lanes: int | None = None
    """Batches decoded side by side, each by threads of its own. None: one for each CPU that this
    process may use, by affinity and the quota of its container."""

    num_threads: int = 0
    """Threads that compute one step of a lane. 0: as many as leave none of these CPUs idle when
    all lanes are busy, so one if there is a lane for each."""

    def shape(self, num_cpus: int) -> tuple[int, int]:
        """How many lanes on so many CPUs, and how many threads each has."""
        lanes = max(1, num_cpus // (self.num_threads or 1)) if self.lanes is None else self.lanes
        return lanes, self.num_threads or max(1, num_cpus // lanes)


@dataclass(frozen=True, slots=True)
class InputLimits:
    """What one call may ask for. The limits on tokens are the model's, in its bundle."""

    max_inputs: int = 256
    """Texts in one call."""

    max_text_characters: int = 20_000
    """Unicode code points of one text."""

    max_exchange_in_flight: int = 256
    """Segments of one stream that are translated or wait for the caller to read the result; a
    blank text counts as one. From this number on the stream is read no further, so this and the
    size of one text bound the memory a slow reader takes."""

    max_attention_bytes: int = 256 << 20
    """Bytes of the attention weights in one answer, as they are sent."""

    max_message_bytes: int = 4 << 20
    """Bytes of one request message, and of what a compressed one unpacks to."""


@dataclass(frozen=True, slots=True)
class Config:
    """All options of `dragoman-server`."""

    model: Path | None = None
    """Folder of the model bundle. None serves the model shipped inside this package."""

    # Loopback, as there is no authentication: reachable from outside only where someone
    # said so. An image of a container says so by DRAGOMAN_LISTEN.
    listen: str = "127.0.0.1:50051"
    """HOST:PORT of the gRPC service. Host 0.0.0.0 or [::] is every interface; port 0 takes a
    free one."""

    metrics_listen: str = "127.0.0.1:9464"
    """HOST:PORT of the Prometheus page /metrics. As `listen`."""

    shutdown_grace_seconds: float = 30.0
    """How long calls in flight may go on after SIGTERM. 0 ends them at once."""

    engine: EngineOptions = field(default_factory=EngineOptions)

    limits: InputLimits = field(default_factory=InputLimits)


def validate(config: Config) -> None:
    """Checks all that can be checked without opening anything.

    Raises:
        StartError: one sentence per option at fault, with its name, limit and value.
    """
    faults = []
    for name, address in (("listen", config.listen), ("metrics_listen", config.metrics_listen)):
        try:
            parse_address(name, address)
        except StartError as error:
            faults.append(str(error))
    counts = {
        "max_running": (config.engine.max_running, 1, 4096),
        "max_waiting": (config.engine.max_waiting, 1, 1_000_000),
        "max_encoder_tokens": (config.engine.max_encoder_tokens, 1, 1_000_000),
        "max_kv_bytes": (config.engine.max_kv_bytes, 0, 2**50),
        "lanes": (1 if config.engine.lanes is None else config.engine.lanes, 1, 1024),
        "num_threads": (config.engine.num_threads, 0, 1024),
        "max_inputs": (config.limits.max_inputs, 1, 1_000_000),
        "max_text_characters": (config.limits.max_text_characters, 1, 10_000_000),
        "max_exchange_in_flight": (config.limits.max_exchange_in_flight, 1, 1_000_000),
        "max_attention_bytes": (config.limits.max_attention_bytes, 1024, 2**40),
        # Protobuf and gRPC count in signed 32 bits.
        "max_message_bytes": (config.limits.max_message_bytes, 1024, 2**31 - 1),
        "shutdown_grace_seconds": (config.shutdown_grace_seconds, 0, 86_400),
    }
    for name, (value, low, high) in counts.items():
        if not low <= value <= high:  # also where value is NaN
            faults.append(f"{name} must be from {low} to {high} and is {value}.")
    if faults:
        raise StartError(" ".join(faults))


def parse_address(name: str, address: str) -> tuple[str, int]:
    """Splits HOST:PORT; an IPv6 host stands in brackets, which are dropped.

    Raises:
        StartError: naming the option `name`.
    """
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    # isdecimal alone would let other scripts' digits pass.
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > 65_535:
        raise StartError(
            f"{name} must be HOST:PORT with a port from 0 to 65535, such as 127.0.0.1:50051 "
            f"or [::1]:50051, and is {address!r}."
        )
    return host, int(port)
