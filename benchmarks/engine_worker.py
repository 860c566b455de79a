"""The engine of some state of the code, the one on the path of this process, with the model it is shipped with.

It answers lines of JSON, {"sources": ..., "max_target_tokens": ...} by {"targets": ...}, both ids.
"""

import json
import sys

from dragoman_server.bundle.bundle import embedded_bundle
from dragoman_server.config import EngineOptions
from dragoman_server.engine.sequence import Request
from dragoman_server.registry.model import Model
from dragoman_server.runtime.hardware import Hardware


def main() -> None:
    """Answers until there are no more lines."""
    options = EngineOptions()
    with Hardware(options) as hardware, Model.open(embedded_bundle(), options, hardware) as model:
        print(json.dumps({"version": model.name}), flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            requests = [Request(tuple(source), asked["max_target_tokens"]) for source in asked["sources"]]
            targets = [future.result().hypotheses[0].token_ids for future in model.engine.submit(requests)]
            print(json.dumps({"targets": targets}), flush=True)


if __name__ == "__main__":
    main()
