"""Starts a server on its own model, translates, shows what the model looked at and some metrics, stops the server.

Run it with `make demo`, or with any Python that has Dragoman and its extra `server` installed.
"""

import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from dragoman import Client

SENTENCES = {
    "en": ["The old cat is sleeping on my chair.", "I don't know where he lives.", "Would you like a cup of tea?"],
    "fr": ["Je ne sais pas où il habite.", "Le train part demain matin."],
    "de": ["Ich weiß nicht, wo er wohnt.", "Der Zug fährt morgen früh ab."],
    "es": ["No sé dónde vive.", "El tren sale mañana por la mañana."],
}
METRICS = ("dragoman_requests_total", "dragoman_source_tokens_total", "dragoman_generated_tokens_total")


@contextmanager
def running_server() -> Iterator[tuple[list[tuple[str, str]], str, str]]:
    """Yields the directions of the model, the address of the service and the URL of its metrics."""
    # Port 0: whatever else runs on this machine, the demo finds room. The line printed when ready names the ports.
    command = [sys.executable, "-m", "dragoman_server", "--listen", "localhost:0", "--metrics-listen", "localhost:0"]
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - ends with the process
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        ready = re.fullmatch(r"serving \S+ \((.*?)\) on .* on (\S+), metrics on (\S+)\n", line)
        if ready is None:
            log.seek(0)
            sys.exit(f"the server did not start: {log.read()}")
        print(line)
        directions = [(source, target) for source, target in (d.split("-") for d in ready[1].split(", "))]
        yield directions, ready[2], ready[3]
    finally:
        server.send_signal(signal.SIGTERM)
        print(f"\nThe server has stopped with exit code {server.wait()}.")


def show_attention(client: Client, text: str, *, source: str, target: str) -> None:
    """Prints which words belong together, and the weights that say so."""
    alignment = client.align(text, source=source, target=target)
    print(f"{source} -> {target}, word by word\n    {alignment.text}\n    {alignment.target_text}\n")
    print("    " + "  ".join(f"{one}={other}" for one, other in alignment.word_pairs()) + "\n")
    attention = client.attention(text, alignment.target_text, source=source, target=target, layers=[alignment.layer])
    heat_map = attention.to_text(layer=alignment.layer)
    print("What each word of the translation (left) was read from (above)\n")
    print("".join(f"    {line}\n" for line in heat_map.splitlines()))


def main() -> None:
    """The demo."""
    with running_server() as (directions, address, metrics_url), Client(address) as client:
        for source, target in directions:
            print(f"{source} -> {target}")
            texts = SENTENCES[source]
            for text, translation in zip(texts, client.translate(texts, source=source, target=target), strict=True):
                print(f"    {text}\n    {translation.text}   (score {translation.score:.2f})\n")
        source, target = directions[0]
        show_attention(client, SENTENCES[source][0], source=source, target=target)
        with urllib.request.urlopen(metrics_url) as page:
            for line in page.read().decode().splitlines():
                if line.startswith(METRICS):
                    print(line)


if __name__ == "__main__":
    main()
