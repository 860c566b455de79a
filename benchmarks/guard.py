"""What protection and tracing cost: served throughput with TLS, with tokens and a log in JSON, and with traces.

    python -m benchmarks.guard

Not a part of `python -m benchmarks`. All servers have the default model and run beside each other; those that are
compared take turns. The callers' side of TLS is paid by the load generator, on the same processors. The goals are that
TLS costs at most 5 %, tokens with the log at most 2 %, and traces of all calls at most 3 %. The collector of the traces
takes them and does nothing else, in this process, on the same processors.
"""

import contextlib
import hashlib
import secrets
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc

from benchmarks.certificates import Authority
from benchmarks.models import default_model
from benchmarks.report import Row
from benchmarks.servers import Server, dragoman_server
from benchmarks.settings import Settings, run_part
from benchmarks.statistics import Summary, paired_ratios

_PLAIN, _TLS, _TOKENS, _TRACES = "without", "TLS", "tokens, log in JSON", "traces of all calls"
_EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_LOADS = {"128 callers of one text": (128, 1), "4 callers of 64 texts": (4, 64)}


def run(settings: Settings) -> Iterator[Row]:
    """Throughput of servers with protection, of that without.

    Raises:
        RuntimeError: a server does not start.
    """
    short = replace(settings, load_seconds=settings.load_seconds / 3)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        servers = _servers(Path(name), settings, stack)
        for load, (num_callers, size) in _LOADS.items():
            rates: dict[str, list[tuple[float, float]]] = {kind: [] for kind in (_TLS, _TOKENS, _TRACES)}
            for server in servers.values():
                server.saturate(short, num_callers, size)  # the first run allocates
            for turn in range(settings.num_pairs):
                for kind, pairs in rates.items():
                    # Who comes first takes turns, too: what one leaves behind would always hit the same.
                    order = (_PLAIN, kind) if turn % 2 else (kind, _PLAIN)
                    rate = {each: servers[each].saturate(short, num_callers, size).tokens_per_second for each in order}
                    pairs.append((rate[kind], rate[_PLAIN]))
            for kind, pairs in rates.items():
                protected, plain = zip(*pairs, strict=True)
                yield servers[_PLAIN].row(f"throughput, {load}", "tokens/s", Summary.of(plain))
                ratio = paired_ratios(protected, plain)
                yield servers[kind].row(f"throughput, {load}", "tokens/s", Summary.of(protected), ratio)


def _servers(folder: Path, settings: Settings, stack: contextlib.ExitStack) -> dict[str, Server]:
    authority, token = Authority(), secrets.token_urlsafe(32)
    ca, tokens = folder / "ca.pem", folder / "tokens"
    ca.write_bytes(authority.certificate)
    certificate, key = authority.issue().save(folder, "server")
    tokens.touch(0o600)
    tokens.write_text(f"bench sha256:{hashlib.sha256(token.encode()).hexdigest()}\n")
    options = {
        _PLAIN: [],
        _TLS: ["--tls-certificate", str(certificate), "--tls-key", str(key)],
        _TOKENS: ["--tokens", str(tokens), "--log-format", "json"],
        _TRACES: ["--otlp-endpoint", stack.enter_context(_collector())],
    }
    model, servers = default_model(), {}
    log = stack.enter_context((folder / "log").open("wb"))
    for kind, given in options.items():
        server = stack.enter_context(dragoman_server(model, settings, *given, log=log.fileno()))
        subject = replace(server.subject, setting=kind)
        servers[kind] = replace(
            server,
            subject=subject,
            ca=str(ca) if kind == _TLS else None,
            token=token if kind == _TOKENS else None,
        )
    return servers


@contextlib.contextmanager
def _collector() -> Iterator[str]:
    """The address of a collector of OpenTelemetry that takes what comes."""
    take: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(lambda *_: b"")
    service, _, method = _EXPORT.strip("/").partition("/")
    server = grpc.server(ThreadPoolExecutor(1), [grpc.method_handlers_generic_handler(service, {method: take})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(None)


if __name__ == "__main__":
    run_part("guard", run)
