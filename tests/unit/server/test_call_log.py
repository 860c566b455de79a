"""What the log has of messages."""

import pytest

from dragoman.v1 import translation_pb2 as pb
from dragoman_server.service.calls import CallContext
from dragoman_server.wire.call_log import CallLog
from dragoman_server.wire.context import Arrival
from dragoman_server.wire.generated import open_inference_pb2


def logged(message: pb.TranslateRequest | open_inference_pb2.ModelInferRequest) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        lines: list[dict[str, object]] = []
        patch.setattr("dragoman_server.wire.call_log.logger.info", lambda _, extra: lines.append(extra))
        CallLog(has_text=True).message("request", message, Arrival({}, "id", None, CallContext()))
    (line,) = lines
    fields = line["fields"]
    assert isinstance(fields, dict)
    return fields


def test_a_message_is_logged_up_to_a_number_of_texts() -> None:
    inputs = [pb.TranslationInput(text=f"{number}") for number in range(3_000)]
    fields = logged(pb.TranslateRequest(inputs=inputs))
    assert len(fields) == 1_000
    assert fields["inputs[999].text"] == "999"


def test_of_a_list_no_more_elements_are_looked_at() -> None:
    inputs = [pb.TranslationInput()] * 3_000 + [pb.TranslationInput(text="last")]
    assert logged(pb.TranslateRequest(inputs=inputs, model="m")) == {"model": "m"}
    message = open_inference_pb2.ModelInferRequest()
    for number in range(3_000):
        message.parameters[f"{number}"].string_param = "x"
    assert len(logged(message)) == 1_000
