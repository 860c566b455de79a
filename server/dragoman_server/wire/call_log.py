"""The lines that the log has of calls: one when a call has ended, and with `--log-text` one for each message."""

import logging
from collections.abc import Iterator
from itertools import islice

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from dragoman_server.log import info
from dragoman_server.wire.context import Arrival

logger = logging.getLogger(__name__)

# Of a string in a message, such as the weights of attention, which are bytes.
_MAX_CHARACTERS = 10_000
# Of a message, and elements of a list in it: a message that will be refused may have millions.
_MAX_TEXTS = 1_000


class CallLog:
    """Writes lines about calls.

    Args:
        has_text: whether their messages are logged, too.
    """

    def __init__(self, has_text: bool = False) -> None:
        self.has_text = has_text

    def ended(self, method: str, code: str, reason: str, seconds: float, arrival: Arrival | None) -> None:
        """A call has ended; there is no text of its caller in what is written.

        Args:
            method: its full name, one of a bounded set.
            code: name of its gRPC status code.
            reason: that of the error which it was answered with, "" where there is none.
            seconds: how long it took.
            arrival: what was known of it; None where nothing was looked at.
        """
        fields: dict[str, object] = {"method": method, "code": code, "duration_seconds": round(seconds, 6)}
        if reason:
            fields["reason"] = reason
        if arrival is not None:
            context = arrival.context
            fields |= {"request_id": arrival.request_id, "caller": context.caller.name or context.identity}
            record = context.record
            trace_id = "" if arrival.trace_parent is None else arrival.trace_parent.trace_id
            for name, value in (
                ("trace_id", trace_id),
                ("model", record.model),
                ("texts", record.num_texts),
                ("waited_seconds", round(record.waited_seconds, 3)),
            ):
                if value:
                    fields[name] = value
        info(logger, "call", fields)

    def message(self, direction: str, message: Message, arrival: Arrival) -> None:
        """A message has come in or goes out; writes all texts in it."""
        texts = dict(islice(_texts(message, ""), _MAX_TEXTS))
        logger.info("message", extra={"request_id": arrival.request_id, "direction": direction, "fields": texts})


def _texts(message: Message, path: str) -> Iterator[tuple[str, str]]:
    """The strings in a message, by the paths of their fields; bytes where they are UTF-8."""
    for field, value in message.ListFields():
        if field.name == "tokens":  # the pieces of a text that is there as a whole
            continue
        if field.type not in (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            continue
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if is_map:
            items = [(f"{path}{field.name}[{key}]", value[key]) for key in islice(value, _MAX_TEXTS)]
        elif field.is_repeated:
            items = [(f"{path}{field.name}[{index}]", item) for index, item in enumerate(islice(value, _MAX_TEXTS))]
        else:
            items = [(path + field.name, value)]
        for name, item in items:
            if isinstance(item, Message):
                yield from _texts(item, f"{name}.")
            elif isinstance(item, str | bytes):
                yield name, _clipped(item)


def _clipped(item: str | bytes) -> str:
    if isinstance(item, bytes):
        try:
            item = item[:_MAX_CHARACTERS].decode()
        except UnicodeDecodeError:
            return f"{len(item)} bytes"
    return item if len(item) <= _MAX_CHARACTERS else item[:_MAX_CHARACTERS] + "…"
