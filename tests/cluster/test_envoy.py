"""Real servers behind a real Envoy, with the configuration of deploy/envoy."""

import http.client
import json
import re
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks.faults import kill
from benchmarks.faults.proxy import Proxy, proxy
from dragoman import Client, InvalidArgumentError
from dragoman_server.bundle.bundle import embedded_bundle
from support.chromium import LOOPBACK, Page, chromium
from support.process import MAIN, ServerProcess, server_process

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
ONE_THREAD = ("--lanes=1", "--num-threads=1")
ASKED = {"inputs": [{"text": "Good morning."}], "sourceLanguageCode": "en", "targetLanguageCode": "fr"}

# A server each of whose steps takes a tenth of a second more.
SLOW = f"""
import time
from dragoman_server.runtime.runner import OnnxRunner
step = OnnxRunner.decode_step
def slow(*arguments, **named):
    time.sleep(0.1)
    return step(*arguments, **named)
OnnxRunner.decode_step = slow
{MAIN}
"""


@pytest.fixture(scope="module")
def servers() -> Iterator[list[ServerProcess]]:
    """Three, of which the last is slow."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(server_process(embedded_bundle(), *ONE_THREAD, program=program))
            for program in (MAIN, MAIN, SLOW)
        ]


@pytest.fixture(scope="module")
def front(envoy: str, servers: list[ServerProcess]) -> Iterator[Proxy]:
    with proxy(envoy, [server.address for server in servers]) as found:
        yield found


@pytest.fixture(scope="module")
def french(front: Proxy) -> str:
    """What the SDK gets through Envoy."""
    with Client(front.address) as client:
        return client.translate("Good morning.", source="en", target="fr").text


def curl(front: Proxy, path: str, asked: Any = None, *options: str) -> tuple[int, str]:
    """The HTTP status and the body."""
    command = ["curl", "-sS", "-w", "\n%{http_code}", f"http://{front.address}{path}", *options]
    if asked is not None:
        command += ["-H", "content-type: application/json", "-d", json.dumps(asked)]
    body, _, status = subprocess.run(command, check=True, capture_output=True, text=True).stdout.rpartition("\n")
    return int(status), body


# -- JSON --------------------------------------------------------------------------------------------------------------


def test_curl_gets_a_translation_as_json(front: Proxy, french: str) -> None:
    status, body = curl(front, "/v1/translate", ASKED)
    answer = json.loads(body)
    (result,) = answer["results"]
    assert (status, result["translation"]["text"]) == (200, french)
    assert (answer["sourceLanguageCode"], answer["targetLanguageCode"]) == ("en", "fr")


def test_fields_may_be_named_as_in_the_contract(front: Proxy) -> None:
    asked = {"inputs": ASKED["inputs"], "source_language_code": "en", "target_language_code": "fr"}
    same = [json.loads(curl(front, "/v1/translate", each)[1])["results"][0]["translation"] for each in (asked, ASKED)]
    assert same[0]["segments"] == same[1]["segments"]


def test_a_stream_is_a_line_for_each_message(front: Proxy, french: str) -> None:
    asked = {"input": {"text": "Good morning."}, "sourceLanguageCode": "en", "targetLanguageCode": "fr"}
    status, body = curl(front, "/v1/translate:stream", asked)
    *deltas, last = map(json.loads, body.splitlines())
    assert (status, "".join(event["delta"] for event in deltas)) == (200, french)
    assert last["translation"]["text"] == french


def test_every_method_that_has_a_path_answers(front: Proxy, french: str) -> None:
    both = {"sourceLanguageCode": "en", "targetLanguageCode": "fr"}
    pair = {"text": "Good morning.", "targetText": french}
    scored = json.loads(curl(front, "/v1/score", {"inputs": [pair], **both})[1])
    assert scored["results"][0]["scored"]["score"] < 0
    aligned = json.loads(curl(front, "/v1/align", {"inputs": [pair], **both})[1])
    assert aligned["results"][0]["alignment"]["targetText"] == french
    header = json.loads(curl(front, "/v1/attention", {**pair, **both})[1].splitlines()[0])["header"]
    assert header["tensors"]
    (model,) = json.loads(curl(front, "/v1/models")[1])["models"]
    for name in (model["name"], f"{model['name']}@{model['version']}"):
        assert json.loads(curl(front, f"/v1/models/{name}")[1])["model"]["name"] == model["name"]


def test_an_error_is_a_status_with_its_details(front: Proxy) -> None:
    status, body = curl(front, "/v1/translate", {**ASKED, "targetLanguageCode": "xx"})
    error = json.loads(body)
    assert (status, error["code"]) == (404, 5)
    assert error["details"][0]["reason"] == "UNSUPPORTED_LANGUAGE_PAIR"
    status, body = curl(front, "/v1/translate", {})
    assert (status, json.loads(body)["code"]) == (400, 3)


@pytest.mark.parametrize(
    ("path", "asked", "expected"),
    [
        ("/v1/nothing", {}, 404),
        ("/v1/translate?inputs=a", ASKED, 400),
        ("/dragoman.v1.ModelAdminService/LoadModel", {}, 404),
        ("/", None, 404),
    ],
)
def test_nothing_else_gets_through(front: Proxy, path: str, asked: Any, expected: int) -> None:
    assert curl(front, path, asked)[0] == expected


def test_a_caller_s_deadline_holds(front: Proxy) -> None:
    status, _ = curl(front, "/v1/translate", ASKED, "-H", "grpc-timeout: 1m")
    assert status in (429, 504)  # refused, as it cannot be kept, or passed


def test_large_calls_get_through(front: Proxy) -> None:
    texts = ["Good morning. " * 1000] * 2
    with Client(front.address) as client:
        with pytest.raises(InvalidArgumentError):
            client.translate("x" * 3_900_000, source="en", target="fr")  # the server's own limit
        assert len(client.translate(texts, source="en", target="fr", max_target_tokens=1)) == len(texts)


def test_the_page_for_prometheus_cannot_stop_envoy(front: Proxy) -> None:
    with urllib.request.urlopen(f"http://{front.metrics_address}/metrics") as answer:
        assert b'envoy_cluster_upstream_rq_total{envoy_cluster_name="servers"}' in answer.read()
    for method, path in (("POST", "/quitquitquit"), ("POST", "/metrics"), ("GET", "/config_dump")):
        connection = http.client.HTTPConnection(front.metrics_address)
        connection.request(method, path)
        assert connection.getresponse().status == 404
        connection.close()


# -- browsers ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(esbuild: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page of another origin than Envoy's."""
    folder = tmp_path_factory.mktemp("page")
    subprocess.run(
        [esbuild, HERE / "page.js", "--bundle", f"--outfile={folder}/page.js", "--log-level=error"], check=True
    )
    shutil.copy(ROOT / "deploy/envoy/dragoman.binpb", folder)
    (folder / "index.html").write_text('<!doctype html><link rel="icon" href="data:,"><script src="page.js"></script>')
    with ThreadingHTTPServer((LOOPBACK, 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with chromium(tmp_path_factory.mktemp("profile"), reaches_loopback=True) as browser:
            browser.open(f"http://{LOOPBACK}:{server.server_port}/index.html")
            yield browser
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_browser_translates_by_grpc_web(front: Proxy, page: Page, french: str) -> None:
    answer = page.run(f"translate('http://{front.address}', {json.dumps(ASKED)})")
    assert answer["results"][0]["translation"]["text"] == french


def test_a_browser_gets_a_stream(front: Proxy, page: Page, french: str) -> None:
    asked = {"input": {"text": "Good morning."}, "sourceLanguageCode": "en", "targetLanguageCode": "fr"}
    *deltas, last = page.run(f"stream('http://{front.address}', {json.dumps(asked)})")
    assert "".join(event["delta"] for event in deltas) == last["translation"]["text"] == french


def test_a_browser_gets_the_reason_of_an_error(front: Proxy, page: Page) -> None:
    asked = {**ASKED, "targetLanguageCode": "xx"}
    error = page.run(f"translate('http://{front.address}', {json.dumps(asked)})")
    assert (error["code"], error["reason"]) == ("NotFound", "UNSUPPORTED_LANGUAGE_PAIR")


@pytest.mark.parametrize(
    ("origin", "may"),
    [("http://localhost:8000", True), (f"http://{LOOPBACK}", True), ("https://example.org", False), ("null", False)],
)
def test_pages_of_this_machine_may_call_and_no_others(front: Proxy, origin: str, may: bool) -> None:
    asking = ["-X", "OPTIONS", "-i", "-H", f"origin: {origin}", "-H", "access-control-request-method: POST"]
    for path in ("/dragoman.v1.TranslationService/Translate", "/v1/translate"):
        _, answer = curl(front, path, None, *asking)
        assert (f"access-control-allow-origin: {origin}" in answer) is may
    _, answer = curl(front, "/v1/models", None, "-i", "-H", f"origin: {origin}")
    assert (f"access-control-allow-origin: {origin}" in answer) is may


# -- several servers ---------------------------------------------------------------------------------------------------


def num_translated(server: ServerProcess) -> int:
    with urllib.request.urlopen(server.metrics_url) as answer:
        text = answer.read().decode()
    counts = re.findall(r'^dragoman_requests_total\{code="OK",method="[^"]*Translate"\} (\S+)$', text, re.MULTILINE)
    return int(sum(map(float, counts)))


def test_the_slow_server_gets_fewer_calls(front: Proxy, servers: list[ServerProcess]) -> None:
    before = [num_translated(server) for server in servers]
    with Client(front.address) as client, ThreadPoolExecutor(6) as callers:
        for each in range(150):
            callers.submit(client.translate, f"Good morning, number {each}.", source="en", target="fr")
    *fast, slow = (num_translated(server) - had for server, had in zip(servers, before, strict=True))
    assert sum(fast) + slow == 150
    # In turns it would be as many as each of the others.
    assert slow < min(fast) / 2
    assert max(fast) < 2 * min(fast)


def test_no_call_fails_when_servers_are_killed_stopped_and_hang(envoy: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended:
        kill.main(kills=3, restarts=1, hangs=1, unary=30, streams=10, callers=2, envoy=envoy)
    assert ended.value.exit_code == 0, capsys.readouterr().out
