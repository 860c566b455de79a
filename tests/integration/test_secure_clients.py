"""The SDK and the command against a server with TLS, and against one that sees what they send."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner, Result

import dragoman
from benchmarks.certificates import Authority, key_bytes, private_key
from dragoman import AsyncClient, Client, PermissionDeniedError, Tls, UnauthenticatedError, UnavailableError
from dragoman._channel import resolve_address
from dragoman._security import secure
from dragoman.cli.commands import app
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.config import AccessOptions
from dragoman_server.wire import tls as tls_module
from support.caller import samples
from support.server_parts import CONFIG, RunningServer, running_server

TRUSTED, FOREIGN = Authority(), Authority("foreign")
LANGUAGES: Any = {"source": "en", "target": "fr"}
TOKEN = "a-token-that-nobody-may-see"


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TLS", "CLIENT_CERTIFICATE", "CLIENT_KEY", "TOKEN", "ADDRESS"):
        monkeypatch.delenv(f"DRAGOMAN_{name}", raising=False)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with what the server and callers have: ca.pem, NAME.pem, NAME.key."""
    (tmp_path / "ca.pem").write_bytes(TRUSTED.certificate)
    (tmp_path / "foreign-ca.pem").write_bytes(FOREIGN.certificate)
    TRUSTED.issue().save(tmp_path, "server")
    TRUSTED.issue("caller").save(tmp_path, "caller")
    TRUSTED.issue("late", days=-1).save(tmp_path, "late")
    FOREIGN.issue("foreign").save(tmp_path, "foreign")
    return tmp_path


@pytest.fixture
async def server(
    files: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> AsyncIterator[RunningServer]:
    """With mutual TLS."""
    monkeypatch.setattr(tls_module, "_SECONDS_PER_LOOK", 0.05)
    access = AccessOptions(
        tls_certificate=files / "server.pem", tls_key=files / "server.key", tls_client_ca=files / "ca.pem"
    )
    async with running_server(bundle, monkeypatch, capsys, replace(CONFIG, access=access)) as running:
        yield running


def shown(files: Path, name: str) -> Tls:
    return Tls(ca=files / "ca.pem", certificate=files / f"{name}.pem", key=files / f"{name}.key")


def command(*arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"TERM": "dumb", "COLUMNS": "200", **variables})


async def test_all_calls_of_both_clients_and_the_command_work_with_mutual_tls(
    server: RunningServer, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = shown(files, "caller")

    def blocking() -> None:
        with Client(server.address, tls=tls, token=TOKEN) as client:
            assert client.translate(["The cat."] * 3, **LANGUAGES)[2].text == "The cat."
            assert "".join(client.stream("The cat.", **LANGUAGES)) == "The cat."
            assert len(list(client.exchange(["The cat."] * 3, **LANGUAGES))) == 3
            assert [model.name for model in client.models()] == ["tiny"]
            assert client.health()

    await asyncio.to_thread(blocking)
    async with AsyncClient(server.address, tls=tls, token=TOKEN) as client:
        assert (await client.translate(["The cat."] * 3, **LANGUAGES))[2].text == "The cat."
        assert "".join([piece async for piece in client.stream("The cat.", **LANGUAGES)]) == "The cat."
        assert len([pair async for pair in client.exchange(["The cat."] * 3, **LANGUAGES)]) == 3
        assert [model.name for model in await client.models()] == ["tiny"]
        assert await client.health()

    flags = ("--tls-ca", str(tls.ca), "--tls-certificate", str(tls.certificate), "--tls-key", str(tls.key))
    languages = ("--from", "en", "--to", "fr")
    result = await asyncio.to_thread(
        command, "translate", *flags, *languages, "The cat.", DRAGOMAN_ADDRESS=server.address
    )
    assert (result.exit_code, result.stdout) == (0, "The cat.\n")
    variables = {"TLS": "ca.pem", "CLIENT_CERTIFICATE": "caller.pem", "CLIENT_KEY": "caller.key"}
    for name, file in variables.items():
        monkeypatch.setenv(f"DRAGOMAN_{name}", str(files / file))
    result = await asyncio.to_thread(command, "health", "--tls", "--address", server.address)
    assert (result.exit_code, result.stdout) == (0, "SERVING\n")
    monkeypatch.setenv("DRAGOMAN_TLS", str(files / "foreign-ca.pem"))  # a flag comes before its variable alone
    result = await asyncio.to_thread(
        command, "models", "--tls-ca", str(files / "ca.pem"), "--json", DRAGOMAN_ADDRESS=server.address
    )
    assert json.loads(result.stdout)["name"] == "tiny"


async def test_who_is_not_let_in_learns_what_may_be_wrong(server: RunningServer, files: Path) -> None:
    cases: list[tuple[Any, str]] = [
        (False, "no server can be reached: is .* What listens there closed the connection: it may want TLS"),
        (files / "ca.pem", "ended the handshake of TLS: it may want a certificate of this client"),
        (shown(files, "late"), "ended the handshake of TLS: the certificate of this client may have expired"),
        (shown(files, "foreign"), "or be of an authority that the server does not trust"),
        (True, r"the certificate of the server at \S+ is not trusted \(unable to get local issuer certificate\)"),
        (str(files / "foreign-ca.pem"), r"tls= \(DRAGOMAN_TLS\) names the file of the authorities that are"),
    ]
    for tls, sentence in cases:
        async with AsyncClient(server.address, tls=tls) as client:
            with pytest.raises(UnavailableError, match=sentence):
                await client.translate("The cat.", **LANGUAGES)


async def test_a_certificate_of_another_name_and_a_server_without_tls_are_told(
    files: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate, key = TRUSTED.issue(hosts=("translate.example",)).save(files, "named")
    access = AccessOptions(tls_certificate=certificate, tls_key=key)
    async with running_server(bundle, monkeypatch, capsys, replace(CONFIG, access=access)) as server:  # noqa: SIM117
        async with AsyncClient(server.address, tls=files / "ca.pem") as client:
            with pytest.raises(UnavailableError, match=r"the certificate of the server at .* is one for another name"):
                await client.translate("The cat.", **LANGUAGES)
    async with running_server(bundle, monkeypatch, capsys, CONFIG) as server:  # noqa: SIM117
        async with AsyncClient(server.address, tls=files / "ca.pem") as client:
            with pytest.raises(UnavailableError, match="does not speak TLS"):
                await client.translate("The cat.", **LANGUAGES)


async def test_no_call_fails_while_certificates_are_replaced(server: RunningServer, files: Path) -> None:
    """Of one client that stays connected, and of new ones."""
    is_over = False

    async def call_on(client: AsyncClient) -> None:
        while not is_over:
            await client.translate("The cat.", **LANGUAGES)

    async def come_and_go() -> None:
        while not is_over:
            async with AsyncClient(server.address, tls=shown(files, "caller")) as client:
                await client.translate("The cat.", **LANGUAGES)

    async with AsyncClient(server.address, tls=shown(files, "caller")) as lasting:
        callers = [asyncio.create_task(call_on(lasting)), asyncio.create_task(come_and_go())]
        for number in range(1, 21):
            TRUSTED.issue(days=30 + number).save(files, "server")
            while samples(server)['dragoman_tls_reloads_total{outcome="ok"}'] < number:
                await asyncio.sleep(0.02)
                assert not any(task.done() for task in callers)
        is_over = True
        await asyncio.gather(*callers)


# -- tokens ------------------------------------------------------------------------------------------------------------


class Seen(grpc.GenericRpcHandler):
    """Refuses all calls, and keeps what authorization each had."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self.code = code
        self.calls: list[tuple[str, list[str]]] = []

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if details.method.endswith("/Watch"):  # gRPC's own, which knows no token: servers may not have it
            return None
        values = [str(value) for key, value in details.invocation_metadata or () if key == "authorization"]
        self.calls.append((details.method.rpartition("/")[2], values))

        def refuse(_: Any, context: grpc.ServicerContext) -> Any:
            context.abort(self.code, "no")

        return grpc.stream_stream_rpc_method_handler(refuse)


@pytest.fixture(params=[grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED])
def seen(request: pytest.FixtureRequest) -> Iterator[tuple[Seen, str]]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    handler = Seen(request.param)
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield handler, f"127.0.0.1:{port}"
    server.stop(None).wait()


ERRORS = {
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
}
METHODS = ["Align", "Check", "ExchangeTranslations", "GetAttention", "ListModels", "LoadModel", "Score"]
METHODS += ["StreamTranslation", "Translate"]


async def test_every_call_has_the_token_and_a_refusal_is_not_repeated(seen: tuple[Seen, str]) -> None:
    handler, address = seen
    error = ERRORS[handler.code]
    client = Client(address, token=TOKEN)
    calls = [
        lambda: client.translate("a", **LANGUAGES),
        lambda: client.translate(["a"] * 300, **LANGUAGES),
        lambda: list(client.stream("a", **LANGUAGES)),
        lambda: list(client.exchange(["a"], **LANGUAGES)),
        lambda: client.score("a", "b", **LANGUAGES),
        lambda: client.attention("a", **LANGUAGES),
        lambda: client.align("a", "b", **LANGUAGES),
        client.models,
        lambda: client.load_model("a"),
        client.health,
    ]
    for call in calls:
        with pytest.raises(error) as refused:
            await asyncio.to_thread(call)
        assert TOKEN not in f"{refused.value!r} {refused.value} {vars(refused.value)}"
    await asyncio.to_thread(client.close)
    assert TOKEN not in repr(vars(client._connection))
    sync_calls, handler.calls = handler.calls, []
    assert {name for name, _ in sync_calls} == set(METHODS)
    assert all(values == [f"Bearer {TOKEN}"] for _, values in sync_calls)

    async with AsyncClient(address, token=TOKEN) as other:
        for awaitable in (
            other.translate("a", **LANGUAGES),
            other.translate(["a"] * 300, **LANGUAGES),
            anext(aiter(other.stream("a", **LANGUAGES))),
            anext(aiter(other.exchange(["a"], **LANGUAGES))),
            other.score("a", "b", **LANGUAGES),
            other.attention("a", **LANGUAGES),
            other.align("a", "b", **LANGUAGES),
            other.models(),
            other.load_model("a"),
            other.health(),
        ):
            with pytest.raises(error):
                await awaitable
        assert TOKEN not in repr(vars(other._connection))
    async_calls = handler.calls
    assert sorted(async_calls) == sorted(sync_calls)  # none more often, so none again


@pytest.mark.parametrize("seen", [grpc.StatusCode.PERMISSION_DENIED], indirect=True)
async def test_what_is_for_this_machine_goes_through_no_proxy(
    seen: tuple[Seen, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, address = seen
    asked: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.close()

    async with await asyncio.start_server(proxy, "127.0.0.1", 0) as server:
        for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        port = server.sockets[0].getsockname()[1]
        for name in ("grpc_proxy", "https_proxy", "http_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        target = f"localhost:{address.rpartition(':')[2]}"
        with Client(target, token=TOKEN) as client, pytest.raises(PermissionDeniedError):
            await asyncio.to_thread(client.models)
        async with AsyncClient(target, token=TOKEN) as other:
            with pytest.raises(PermissionDeniedError):
                await other.models()
    assert len(handler.calls) == 2
    assert not asked


async def test_a_client_without_a_token_is_told_where_it_would_come_from(seen: tuple[Seen, str]) -> None:
    handler, address = seen
    async with AsyncClient(address) as client:
        with pytest.raises(ERRORS[handler.code]) as refused:
            await client.translate("a", **LANGUAGES)
    assert ("DRAGOMAN_TOKEN" in str(refused.value)) == (handler.code is grpc.StatusCode.UNAUTHENTICATED)
    assert {tuple(values) for _, values in handler.calls} == {()}


async def test_the_command_takes_the_token_from_a_file_or_the_variable(seen: tuple[Seen, str], tmp_path: Path) -> None:
    handler, address = seen
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    for arguments, variables in (
        (("--token-file", str(file)), {}),
        ((), {"DRAGOMAN_TOKEN": TOKEN}),
        (("--token-file", str(file)), {"DRAGOMAN_TOKEN": "another"}),
    ):
        result = await asyncio.to_thread(command, "models", *arguments, DRAGOMAN_ADDRESS=address, **variables)
        assert result.exit_code == 1
        assert TOKEN not in result.output
    assert [values for _, values in handler.calls] == [[f"Bearer {TOKEN}"]] * 3


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "cannot be read: No such file"), (b"", "has no token."), (b"\xff", "cannot be read: it is not UTF-8 text")],
)
def test_a_bad_file_of_a_token_is_wrong_usage(content: bytes | None, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    result = command("models", "--token-file", str(file))
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.replace("│", " ").split())


# -- what makes no sense -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["", "0", "false", "1", "true"])
def test_a_token_goes_to_other_machines_with_tls_alone(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAGOMAN_TLS", variable)

    def protect(address: str, tls: bool | None) -> None:
        secure(resolve_address(address), tls, TOKEN)

    for address in (
        "localhost",
        "127.0.0.1:1",
        "[::1]",
        "unix:/a",
        "ipv4:127.0.0.1:1,127.0.0.2:1",
        "dns:///localhost:1",
        "dns:localhost:1",
        "ipv6:[::1]:1",
    ):
        protect(address, None)
    for address in (
        "translate.example",
        "10.0.0.1",
        "[fe80::1]:1",
        "ipv4:127.0.0.1:1,10.0.0.1:1",
        "dns:///a:1",
        "xds:///a",
        "dns://8.8.8.8/localhost:1",
    ):
        if variable:  # it was said what is wanted
            protect(address, None)
            continue
        with pytest.raises(ValueError, match=r"the token is not sent to .* without TLS") as refused:
            protect(address, None)
        assert TOKEN not in str(refused.value)
        protect(address, False)
        protect(address, True)
        secure(resolve_address(address), None, None)
    if not variable:
        for make in (Client, AsyncClient):
            with pytest.raises(ValueError, match=r"the token is not sent to .* without TLS"):
                make("translate.example", token=TOKEN)


def test_what_is_of_no_use_is_told_when_a_client_is_made(files: Path) -> None:
    (files / "bad.pem").write_bytes(b"garbage")
    broken = TRUSTED.certificate.replace(b"\nMII", b"\n\xff\xff", 1)
    (files / "broken.pem").write_bytes(TRUSTED.certificate + broken)
    (files / "locked.key").write_bytes(key_bytes(private_key(), b"pass"))
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"tls": 1.5}, TypeError, "tls is of type float, must be a bool, the path of a file or a dragoman.Tls"),
        ({"token": 5}, TypeError, "token is of type int, must be a str"),
        ({"token": ""}, ValueError, "the token is empty: leave token= out for that of DRAGOMAN_TOKEN"),
        ({"tls": ""}, ValueError, "tls is the path of a file and empty: leave it out for what DRAGOMAN_TLS says"),
        ({"tls": Tls(ca="")}, ValueError, "the authorities are in a file whose path is empty"),
        ({"token": "a b"}, ValueError, "the token has characters other than visible ASCII"),
        ({"token": "a\nb"}, ValueError, "the token has characters other than visible ASCII"),
        ({"tls": files / "none.pem"}, ValueError, r"the authorities in \S+none.pem cannot be read: No such file"),
        ({"tls": files / "broken.pem"}, ValueError, r"broken.pem has no certificates in PEM form"),
        ({"tls": files / "bad.pem"}, ValueError, r"bad.pem has no certificates in PEM form"),
        (
            {"tls": Tls(certificate=files / "caller.pem")},
            ValueError,
            "a certificate of the client is of no use without",
        ),
        (
            {"tls": Tls(key=files / "caller.key")},
            ValueError,
            "a key of the client is of no use without its certificate",
        ),
        (
            {"tls": Tls(certificate=files / "x", key=files / "caller.key")},
            ValueError,
            r"the certificate in \S+x cannot be",
        ),
        (
            {"tls": replace(shown(files, "caller"), key=files / "late.key")},
            ValueError,
            "are not a certificate in PEM form",
        ),
        ({"tls": replace(shown(files, "caller"), key=files / "locked.key")}, ValueError, r"locked.key is encrypted"),
    ]
    for arguments, kind, sentence in cases:
        for make in (Client, AsyncClient):
            with pytest.raises(kind, match=sentence):
                make("localhost", **arguments)
    result = command("health", "--tls-ca", str(files / "bad.pem"))
    assert result.exit_code == 2
    assert "has no certificates in PEM form" in " ".join(result.output.replace("│", " ").split())


async def test_authorities_may_have_marks_and_comments_around_them(server: RunningServer, files: Path) -> None:
    odd = files / "odd.pem"
    odd.write_bytes(b"\xef\xbb\xbf" + TRUSTED.certificate + "# Főtanúsítvány\n".encode() + FOREIGN.certificate)
    async with AsyncClient(server.address, tls=replace(shown(files, "caller"), ca=odd)) as client:
        assert await client.health()


def test_variables_and_authorities_of_the_machine(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Client("localhost", tls=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(files / "none.pem"))
    with pytest.raises(ValueError, match=r"none\.pem, which SSL_CERT_FILE names, cannot be read"):
        Client("localhost", tls=True)
    (files / "none.pem").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none\.pem, which SSL_CERT_FILE names, has no certificates in PEM form"):
        Client("localhost", tls=True)
    monkeypatch.setenv("SSL_CERT_FILE", "")  # is none
    Client("localhost", tls=True)
    monkeypatch.setenv("DRAGOMAN_TLS", "yes")
    with pytest.raises(ValueError, match=r"the authorities in yes cannot be read: .* \(as DRAGOMAN_TLS, .* says\)"):
        Client("localhost")
    monkeypatch.delenv("DRAGOMAN_TLS")
    Client("localhost", tls=files / "ca.pem")
    monkeypatch.setenv("DRAGOMAN_CLIENT_KEY", str(files / "caller.key"))
    with pytest.raises(ValueError, match="a key of the client is of no use without its certificate"):
        Client("localhost")
    monkeypatch.setenv("DRAGOMAN_TLS", "0")
    Client("localhost")
    assert dragoman.Tls(ca="a") == Tls(ca="a")
