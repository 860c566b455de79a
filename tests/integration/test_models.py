"""Many models in a real server process: names, versions, reloads under load, pivots, administration."""

import asyncio
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dragoman import (
    AsyncClient,
    Client,
    DragomanError,
    FailedPreconditionError,
    NotFoundError,
    Pivot,
    Translation,
    UnimplementedError,
)
from dragoman.v1 import models_pb2 as pb
from dragoman.v1 import models_pb2_grpc
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import MANIFEST_FILE, Precision
from support.process import MAIN, ServerProcess, server_process
from support.repository import copy_bundle, copy_in_steps, resident_bytes, swap

TEXT = "the small dog sees a red house"


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory, tiny_bundles: dict[Precision, Bundle]) -> list[Path]:
    """Two bundles that translate differently."""
    from dragoman_export.bundle.writer import export
    from support.tiny_model import random_checkpoint, random_sources

    checkpoint = random_checkpoint(seed=1)
    folder = tmp_path_factory.mktemp("versions") / "other"
    export(checkpoint, folder, "fp32", random_sources(checkpoint, 20))
    return [tiny_bundles["fp32"].folder, folder]


class Admin:
    """Administers a server."""

    def __init__(self, server: ServerProcess) -> None:
        assert server.admin_address is not None
        self.channel = grpc.insecure_channel(server.admin_address)
        self._admin = models_pb2_grpc.ModelAdminServiceStub(self.channel)
        self._models = models_pb2_grpc.ModelServiceStub(self.channel)

    def load(self, path: str) -> pb.Model:
        return self._admin.LoadModel(pb.LoadModelRequest(path=path), timeout=60).model

    def unload(self, model: str, *, drain: bool = False, timeout: float = 60) -> None:
        self._admin.UnloadModel(pb.UnloadModelRequest(model=model, drain=drain), timeout=timeout)

    def set_default(self, model: str, source: str = "", target: str = "") -> None:
        request = pb.SetDefaultModelRequest(model=model, source_language_code=source, target_language_code=target)
        self._admin.SetDefaultModel(request, timeout=10)

    def get(self, name: str) -> pb.Model:
        return self._models.GetModel(pb.GetModelRequest(model=name), timeout=10).model

    def models(self) -> dict[str, pb.Model]:
        response = self._models.ListModels(pb.ListModelsRequest(), timeout=10)
        return {f"{model.name}@{model.version}": model for model in response.models}

    def health(self, name: str) -> "health_pb2.HealthCheckResponse.ServingStatus":
        stub = health_pb2_grpc.HealthStub(self.channel)
        return stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status


def translate(client: Client, model: str = "", target: str = "de") -> Translation:
    return client.translate(TEXT, source="en", target=target, model=model)


def until(admin: Admin, condition: Callable[[dict[str, pb.Model]], bool]) -> dict[str, pb.Model]:
    """The models, as soon as the condition holds for them."""
    while not condition(models := admin.models()):
        time.sleep(0.02)
    return models


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str, str]:
    """Code, reason and text of the error of a call."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    info = ErrorInfo()
    trailers: Iterable[tuple[str, bytes]] = caught.value.trailing_metadata()  # type: ignore[assignment]
    for key, value in trailers:
        if key == "grpc-status-details-bin":
            Status.FromString(value).details[0].Unpack(info)
    return caught.value.code(), info.reason, str(caught.value.details())


@pytest.fixture
def root(tmp_path: Path, versions: list[Path]) -> Path:
    """A repository: a of two languages; b of two versions; a broken one."""
    root = tmp_path / "models"
    copy_bundle(versions[0], root / "a")
    copy_bundle(versions[0], root / "b" / "1")
    copy_bundle(versions[1], root / "b" / "2")
    copy_bundle(versions[0], root / "broken")
    (root / "broken" / "weights.bin").write_bytes(b"short")
    return root


@pytest.fixture
def server(root: Path) -> Iterator[ServerProcess]:
    with server_process(None, "--repository", str(root)) as process:
        yield process


@pytest.fixture
def admin(server: ServerProcess) -> Iterator[Admin]:
    admin = Admin(server)
    yield admin
    admin.channel.close()


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


# -- names and versions ------------------------------------------------------------------------------------------------


def test_models_are_found_by_name_and_version(client: Client, admin: Admin) -> None:
    served = {name: translate(client, name) for name in ("", "a", "b", "b@1", "b@2")}
    assert served[""].model == served["a"].model == f"a@{admin.get('a').version}"
    assert served["b"].model == served["b@2"].model == "b@2"
    assert served["b@1"].model == "b@1"
    assert served["a"].text == served["b@1"].text != served["b"].text
    with pytest.raises(NotFoundError, match="no such version; model 'b' has 1, 2"):
        translate(client, "b@3")


def test_a_broken_bundle_is_told_and_the_others_are_served(client: Client, admin: Admin) -> None:
    models = admin.models()
    states = {name: model.state for name, model in models.items()}
    assert [*states.values()] == [pb.MODEL_STATE_READY] * 3 + [pb.MODEL_STATE_FAILED]
    assert "weights.bin" in models["broken@"].error
    with pytest.raises(FailedPreconditionError, match=r"weights\.bin"):
        translate(client, "broken")
    assert admin.health("broken") == health_pb2.HealthCheckResponse.NOT_SERVING
    assert admin.health("") == admin.health("a") == admin.health("b@1") == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        admin.health("other")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_model_says_what_it_is(admin: Admin, versions: list[Path]) -> None:
    model, bundle = admin.get("b@1"), Bundle.open(versions[0])
    manifest = bundle.manifest
    assert (model.name, model.version, model.precision, model.device) == ("b", "1", "fp32", "cpu")
    assert [(*g.source_language_codes, *g.target_language_codes) for g in model.languages] == [
        ("en", "de"),
        ("en", "fr"),
    ]
    assert model.limits.max_source_tokens == manifest.limits.max_source_tokens
    assert model.parity.num_sentences == manifest.parity.num_sentences
    assert 0 <= model.parity.replayed_logprob_difference <= model.parity.logprob_tolerance
    assert (model.execution_provider, model.determinism) == ("CPUExecutionProvider", pb.DETERMINISM_BITWISE)
    assert model.has_attention
    assert model.memory.weights_bytes > (versions[0] / "weights.bin").stat().st_size
    assert 0 < model.memory.kv_cache_bytes <= model.memory.max_kv_cache_bytes
    assert model.load_time.seconds > 1.6e9
    assert (model.is_default_version, admin.get("b").version) == (False, "2")


def test_models_given_one_by_one_may_have_other_names(versions: list[Path]) -> None:
    with (
        server_process(versions[0], "--model", f"other={versions[1]}") as server,
        Client(server.address) as client,
    ):
        assert server.admin_address is None
        assert translate(client).model.startswith("tiny@")
        assert translate(client, "other").model.startswith("other@")


@pytest.mark.parametrize(("way", "fault"), [("..", "is served already"), (".", "given twice")])
def test_two_models_of_one_name_and_version_are_refused(versions: list[Path], way: str, fault: str) -> None:
    folder = versions[0]
    same = folder if way == "." else folder / way / folder.name
    models = ["--model", str(folder), "--model", str(same)]
    command = [sys.executable, "-c", MAIN, *models, "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 2
    assert fault in process.stderr.splitlines()[-1]


# -- administration ----------------------------------------------------------------------------------------------------


def test_defaults_are_set(client: Client, admin: Admin) -> None:
    admin.set_default("b", "en", "fr")
    assert translate(client, target="fr").model == "b@2"
    assert translate(client).model.startswith("a@")
    admin.set_default("b@1")
    assert translate(client).model == translate(client, "b").model == "b@1"
    assert [[*group.target_language_codes] for group in admin.get("b").default_for] == [["fr"], ["de"]]


def test_what_is_wrong_with_administration_is_refused(
    admin: Admin, root: Path, tmp_path: Path, versions: list[Path]
) -> None:
    copy_bundle(versions[0], tmp_path / "outside")
    (root / "link").symlink_to(tmp_path / "outside")
    Code = grpc.StatusCode  # noqa: N806
    outside = (Code.INVALID_ARGUMENT, "PATH_OUTSIDE_REPOSITORY")
    for path in ("../outside", "link", str(tmp_path / "outside"), "", "a/../../outside"):
        assert refusal(lambda path=path: admin.load(path))[:2] == outside  # type: ignore[misc]
    assert refusal(lambda: admin.load("none"))[:2] == (Code.NOT_FOUND, "MODEL_NOT_FOUND")
    code, reason, text = refusal(lambda: admin.load("broken"))
    assert (code, reason) == (Code.FAILED_PRECONDITION, "MODEL_FAILED")
    assert "weights.bin" in text
    for name, expected in (
        ("", (Code.INVALID_ARGUMENT, "REQUIRED_FIELD")),
        ("b", (Code.INVALID_ARGUMENT, "AMBIGUOUS_MODEL")),
        ("none", (Code.NOT_FOUND, "MODEL_NOT_FOUND")),
    ):
        assert refusal(lambda name=name: admin.unload(name))[:2] == expected  # type: ignore[misc]
    assert refusal(lambda: admin.set_default("none"))[:2] == (Code.NOT_FOUND, "MODEL_NOT_FOUND")
    assert refusal(lambda: admin.set_default("a", "fr", "en"))[:2] == (Code.NOT_FOUND, "UNSUPPORTED_LANGUAGE_PAIR")
    assert refusal(lambda: admin.get(""))[:2] == (Code.INVALID_ARGUMENT, "REQUIRED_FIELD")


def test_the_main_address_takes_no_administration(server: ServerProcess, admin: Admin, client: Client) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub = models_pb2_grpc.ModelAdminServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.UnloadModel(pb.UnloadModelRequest(model="a"), timeout=10)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        # Nor when it has been called where it is.
        admin.unload("b@1")
        with pytest.raises(grpc.RpcError) as caught:
            stub.UnloadModel(pb.UnloadModelRequest(model="a"), timeout=10)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert len(models_pb2_grpc.ModelServiceStub(channel).ListModels(pb.ListModelsRequest(), timeout=10).models) == 3
    translate(client)
    assert server.admin_address is not None
    with Client(server.admin_address) as other, pytest.raises(UnimplementedError):
        translate(other)


def test_without_a_repository_nothing_is_loaded(versions: list[Path]) -> None:
    with server_process(versions[0], "--admin-listen", "127.0.0.1:0") as server:
        admin = Admin(server)
        code, reason, _ = refusal(lambda: admin.load("a"))
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_REPOSITORY")
        admin.unload("tiny")
        with Client(server.address) as client, pytest.raises(NotFoundError, match="this server has no model"):
            translate(client)
        admin.channel.close()


async def test_a_model_in_use_is_unloaded_by_draining(server: ServerProcess, admin: Admin) -> None:
    async with AsyncClient(server.address) as client:
        goes_on = asyncio.Event()

        async def texts() -> AsyncIterator[str]:
            yield TEXT
            await goes_on.wait()
            yield TEXT

        exchange = client.exchange(texts(), source="en", target="de", model="b@1")
        assert not isinstance((await anext(exchange))[1], DragomanError)
        code, reason, _ = await asyncio.to_thread(refusal, lambda: admin.unload("b@1"))
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_IN_USE")
        code, reason, _ = await asyncio.to_thread(refusal, lambda: admin.unload("b@1", drain=True, timeout=0.3))
        assert code == grpc.StatusCode.DEADLINE_EXCEEDED
        assert admin.models()["b@1"].state == pb.MODEL_STATE_DRAINING
        with pytest.raises(NotFoundError):
            await client.translate(TEXT, source="en", target="de", model="b@1")
        goes_on.set()
        _, last = await anext(exchange)
        assert isinstance(last, Translation)
        assert last.model == "b@1"
        assert [item async for item in exchange] == []
        await asyncio.to_thread(until, admin, lambda models: "b@1" not in models)


# -- reloads -----------------------------------------------------------------------------------------------------------


async def reload_under_load(
    server: ServerProcess, admin: Admin, folder: Path, versions: list[Path], num_reloads: int, num_callers: int
) -> None:
    """Reloads a model again and again, with a load that fails in between, and checks every answer."""
    expected: dict[str, str] = {}
    for source in versions:
        swap(folder, source)
        name = f"a@{admin.load('a').version}"
        with Client(server.address) as one:
            expected[name] = translate(one, name).text
    assert len({*expected.values()}) == len(versions)
    answers: set[str] = set()
    is_done = False

    async def calls(client: AsyncClient, is_streaming: bool) -> int:
        num_calls = 0
        while not is_done:
            if is_streaming:
                stream = client.stream(TEXT, source="en", target="de", model="a")
                pieces = [piece async for piece in stream]
                result = stream.result
                assert "".join(pieces) == result.text
            else:
                result = await client.translate(TEXT, source="en", target="de", model="a")
            assert result.text == expected[result.model]
            answers.add(result.model)
            num_calls += 1
        return num_calls

    async with AsyncClient(server.address) as client:
        callers = [asyncio.create_task(calls(client, number % 2 == 0)) for number in range(num_callers)]
        memory = []
        for number in range(num_reloads):
            swap(folder, versions[number % len(versions)])
            if number % 5 == 2:  # one that fails
                (folder / "weights.bin").write_bytes(b"half")
                assert (await asyncio.to_thread(refusal, lambda: admin.load("a")))[1] == "MODEL_FAILED"
                swap(folder, versions[number % len(versions)])
            await asyncio.to_thread(admin.load, "a")
            memory.append(resident_bytes(server.process.pid))
        is_done = True
        nums_calls = await asyncio.gather(*callers)
    assert min(nums_calls) > 0
    assert answers == expected.keys()
    until(admin, lambda models: len(models) == 4)
    memory.append(resident_bytes(server.process.pid))
    print(f"{sum(nums_calls)} calls; memory in MB: {[number // 1_000_000 for number in memory]}")
    assert memory[-1] < 1.2 * max(memory[: 1 + len(memory) // 4])


async def test_reloads_lose_no_call(server: ServerProcess, admin: Admin, root: Path, versions: list[Path]) -> None:
    await reload_under_load(server, admin, root / "a", versions, 10, 8)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_100_reloads_under_32_callers(
    server: ServerProcess, admin: Admin, root: Path, versions: list[Path]
) -> None:
    await reload_under_load(server, admin, root / "a", versions, 100, 32)


def test_a_repository_is_followed(root: Path, versions: list[Path]) -> None:
    shutil.rmtree(root / "broken")
    with server_process(None, "--repository", str(root), "--watch-seconds", "0.2") as server:
        admin = Admin(server)
        before = admin.get("a").version

        swap(root / "a", versions[1])
        until(admin, lambda models: f"a@{before}" not in models and any(name.startswith("a@") for name in models))
        shutil.rmtree(root / "b" / "2")
        models = until(admin, lambda models: "b@2" not in models)
        assert models["b@1"].is_default_version
        # A bundle that is being copied is served when it is whole, and not before.
        for path in copy_in_steps(versions[0], root / "c"):
            assert not any(name.startswith("c@") for name in admin.models())
            shutil.copy(path, root / "c")
        models = until(admin, lambda models: any(name.startswith("c@") for name in models))
        assert [m.state for name, m in models.items() if name.startswith("c@")] == [pb.MODEL_STATE_READY]
        admin.channel.close()


def test_a_bundle_that_is_exported_over_another_loses_no_call(root: Path, versions: list[Path]) -> None:
    """As by `dragoman-export import --force` into a repository that is followed."""
    from dragoman_export.new_folder import new_folder

    with (
        server_process(None, "--repository", str(root), "--watch-seconds", "0.02") as server,
        Client(server.address) as client,
    ):
        before = translate(client, "a").model
        for number in range(1, 5):
            with new_folder(root / "a", unless_has=MANIFEST_FILE) as partial:
                shutil.copytree(versions[number % 2], partial, dirs_exist_ok=True)
            started = time.monotonic()
            while (model := translate(client, "a").model) == before:
                assert time.monotonic() - started < 60
            before = model
        assert [path.name for path in root.iterdir() if path.name.startswith(".")] == []


def test_weights_that_change_alone_are_noticed_and_not_used(admin: Admin, client: Client, root: Path) -> None:
    before = translate(client, "a")
    weights = root / "a" / "weights.bin"
    with weights.open("r+b") as file:  # as cp does it
        file.truncate(1000)
    assert translate(client, "a").text == before.text
    assert refusal(lambda: admin.load("a"))[1] == "MODEL_FAILED"
    assert translate(client, "a").model == before.model


def test_a_copy_that_stopped_half_way_leaves_what_is_served(
    server: ServerProcess, admin: Admin, client: Client, root: Path, versions: list[Path]
) -> None:
    version = admin.get("a").version
    contents = (versions[1] / "weights.bin").read_bytes()
    half = root / "a" / "weights.bin.tmp"
    half.write_bytes(contents[: len(contents) // 2])
    half.rename(root / "a" / "weights.bin")
    shutil.copy(versions[1] / "manifest.json", root / "a")
    assert refusal(lambda: admin.load("a"))[1] == "MODEL_FAILED"
    model = admin.get("a")
    assert (model.version, model.state) == (version, pb.MODEL_STATE_READY)
    assert "weights.bin" in model.error
    assert translate(client, "a").model == f"a@{version}"


# -- the limit of memory -----------------------------------------------------------------------------------------------


def test_a_limit_of_memory_loads_models_when_they_are_used(tmp_path: Path, versions: list[Path]) -> None:
    root = tmp_path / "models"
    for number in range(6):
        copy_bundle(versions[number % 2], root / f"m{number}")
    with server_process(None, "--repository", str(root)) as server:
        admin = Admin(server)
        size = max(model.memory.weights_bytes for model in admin.models().values())
        admin.channel.close()
    with (
        server_process(None, "--repository", str(root), "--max-model-bytes", str(3 * size)) as server,
        Client(server.address) as client,
    ):
        admin = Admin(server)
        assert {model.state for model in admin.models().values()} == {pb.MODEL_STATE_LISTED}
        texts = {0: "", 1: ""}
        for number in (0, 1, 2, 3, 4, 5, 4, 3, 0, 5):
            found = translate(client, f"m{number}")
            assert found.model.startswith(f"m{number}@")
            texts[number % 2] = texts[number % 2] or found.text
            assert found.text == texts[number % 2]
            assert sum(model.state == pb.MODEL_STATE_READY for model in admin.models().values()) <= 3
        admin.channel.close()


def test_a_bundle_that_is_swapped_before_its_first_use_is_not_served_as_what_was_listed(
    tmp_path: Path, versions: list[Path]
) -> None:
    root = tmp_path / "models"
    copy_bundle(versions[0], root / "a")
    with (
        server_process(None, "--repository", str(root), "--max-model-bytes", "1000000000") as server,
        Client(server.address) as client,
    ):
        swap(root / "a", versions[1])
        with pytest.raises(FailedPreconditionError, match="changed since it was listed"):
            translate(client, "a")
        admin = Admin(server)
        version = admin.load("a").version
        assert translate(client, "a").model == f"a@{version}"
        admin.channel.close()


# -- pivots ------------------------------------------------------------------------------------------------------------


def test_a_pivot_is_two_translations_by_hand(tmp_path: Path, versions: list[Path]) -> None:
    from support.tiny_model import WORDS

    root = tmp_path / "models"
    copy_bundle(versions[0], root / "de-en", ("de", "en"))
    copy_bundle(versions[1], root / "en-es", ("en", "es"))
    rng = random.Random(0)
    lines = [" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(200)]
    texts = [*lines[:100], *map("\n".join, zip(lines[100:150], lines[150:], strict=True))]
    with server_process(None, "--repository", str(root)) as server, Client(server.address) as client:
        english = client.translate(texts, source="de", target="en")
        by_hand = client.translate([text.text for text in english], source="en", target="es")
        through = client.translate(texts, source="de", target="es")
        assert [text.text for text in through] == [text.text for text in by_hand]
        assert len({text.text for text in through}) > len(texts) / 2
        assert {text.model for text in through} == {by_hand[0].model}
        assert {text.pivot for text in through} == {Pivot("en", english[0].model, "full")}
        for text, whole in zip(texts[::10], through[::10], strict=True):
            stream = client.stream(text, source="de", target="es")
            assert "".join(stream) == stream.result.text == whole.text
            assert stream.result.pivot == whole.pivot
        for index, result in client.exchange(texts[:20], source="de", target="es"):
            assert str(result) == through[index].text
        with pytest.raises(NotFoundError, match="ExchangeTranslations alone go through en"):
            client.score("the dog", "the dog", source="de", target="es")
    with (
        server_process(None, "--repository", str(root), "--pivot", "off") as server,
        Client(server.address) as client,
        pytest.raises(NotFoundError, match="no model translates de-es"),
    ):
        client.translate(texts[0], source="de", target="es")


# -- the end -----------------------------------------------------------------------------------------------------------


def test_a_server_with_models_ends_on_a_signal(server: ServerProcess, client: Client) -> None:
    translate(client)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=30) == 0


def test_a_repository_without_bundles_serves_what_comes(tmp_path: Path, versions: list[Path]) -> None:
    with server_process(None, "--repository", str(tmp_path)) as server:
        admin = Admin(server)
        while admin.health("") == health_pb2.HealthCheckResponse.SERVING:
            pass
        copy_bundle(versions[0], tmp_path / "a")
        admin.load("a")
        while admin.health("") != health_pb2.HealthCheckResponse.SERVING:
            pass
        admin.channel.close()
