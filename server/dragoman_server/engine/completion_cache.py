"""Answers that are kept for the next who asks the same: bounded in bytes, the least recently used go first."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import fields
from hashlib import blake2b
from operator import attrgetter
from weakref import WeakKeyDictionary

import msgspec

from dragoman_server.engine.candidates import Candidates
from dragoman_server.engine.search_options import SearchOptions
from dragoman_server.engine.sequence import Hypothesis, Request

# All else in a request may change the answer; so may a field that is added one day, until it is named here.
_OF_NO_EFFECT = {"deadline", "priority", "seconds_after"}
_answer_fields = attrgetter(
    *(f.name for f in fields(Request) if f.name not in {*_OF_NO_EFFECT, "options", "candidates"})
)

_DIGEST_BYTES = 32  # callers choose the texts: no two requests can be made that have the same
_BYTES_PER_NUMBER = 8  # of a model, before the digest

# What an entry takes up beside the packed answer: a key, two objects of Python, its share of tables that may just have
# grown.
_ENTRY_BYTES = 240
_ENTRIES_AT_A_TIME = 1000

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[Hypothesis, ...])


class CompletionCache:
    """Hypotheses by the request that they answer, of all models of a server. Thread-safe.

    It holds the answers, and of the requests no more than a digest.

    Args:
        max_bytes: what all entries together may take up.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()  # guards all below
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()  # the latest used last
        self._num_bytes = 0
        self._num_parts = 0

    @property
    def num_bytes(self) -> int:
        """What the entries take up: an upper estimate."""
        return self._num_bytes

    def part(self) -> "CachePart":
        """The part of another model, or of another load of the same one."""
        with self._lock:
            self._num_parts += 1
            return CachePart(self, self._num_parts.to_bytes(_BYTES_PER_NUMBER, "big"))

    def find(self, key: bytes) -> bytes | None:
        """What was put under the key, which is the latest used now; None if it is not there or not any more."""
        with self._lock:
            value = self._entries.get(key)
            if value is not None:
                self._entries.move_to_end(key)
            return value

    def put(self, key: bytes, value: bytes) -> None:
        """Keeps a value; what has not been used for longest makes room. One that is too large by itself is not kept."""
        size = _ENTRY_BYTES + len(value)
        if size > self.max_bytes:
            return
        with self._lock:
            self._drop(key)
            while self._num_bytes + size > self.max_bytes:
                self._drop(next(iter(self._entries)))
            self._entries[key] = value
            self._num_bytes += size

    def forget(self, prefix: bytes) -> None:
        """Drops all whose keys begin so, some at a time: nobody who looks for something waits for the whole."""
        with self._lock:
            keys = list(self._entries)
        keys = [key for key in keys if key.startswith(prefix)]
        for begin in range(0, len(keys), _ENTRIES_AT_A_TIME):
            with self._lock:
                for key in keys[begin : begin + _ENTRIES_AT_A_TIME]:
                    self._drop(key)

    def _drop(self, key: bytes) -> None:
        value = self._entries.pop(key, None)
        if value is not None:
            self._num_bytes -= _ENTRY_BYTES + len(value)


class CachePart:
    """What a cache has of one model while that is loaded: another load of the same bundle begins without answers.

    Thread-safe, but for `keys`, which one thread calls at a time.
    """

    def __init__(self, cache: CompletionCache, prefix: bytes) -> None:
        self._cache, self._prefix = cache, prefix
        self._list_digests: WeakKeyDictionary[Candidates, bytes] = WeakKeyDictionary()
        self._is_closed = False

    def keys(self, requests: Sequence[Request]) -> list[bytes | None]:
        """What answers of requests are kept by, made of all that may change them. None: they differ every time."""
        keys, options, options_text = list[bytes | None](), None, ""
        for request in requests:
            if request.options is not options:  # those of a call are the same object
                options = request.options
                options_text = "" if _is_random(options) else repr(options)
            keys.append(self._key(request, options_text) if options_text else None)
        return keys

    def find(self, key: bytes) -> tuple[Hypothesis, ...] | None:
        """The hypotheses that were kept."""
        value = self._cache.find(key)
        return None if value is None else _decoder.decode(value)

    def keep(self, key: bytes, hypotheses: tuple[Hypothesis, ...]) -> None:
        """Keeps hypotheses, unless the part is closed."""
        value = bytes(memoryview(_encoder.encode(hypotheses)))  # a copy: msgspec leaves room behind its own
        if not self._is_closed:
            self._cache.put(key, value)

    def close(self) -> None:
        """Forgets everything, for good. Nothing must be being kept meanwhile."""
        self._is_closed = True
        self._cache.forget(self._prefix)

    def _key(self, request: Request, options_text: str) -> bytes:
        digest = blake2b(f"{_answer_fields(request)}{options_text}".encode(), digest_size=_DIGEST_BYTES)
        if request.candidates is not None:
            digest.update(self._list_digest(request.candidates))
        return self._prefix + digest.digest()

    def _list_digest(self, candidates: Candidates) -> bytes:
        digest = self._list_digests.get(candidates)
        if digest is None:
            digest = blake2b(candidates.ids.tobytes(), digest_size=_DIGEST_BYTES).digest()
            if candidates.is_shared:
                self._list_digests[candidates] = digest
        return digest


def _is_random(options: SearchOptions) -> bool:
    return options.is_sampling and options.seed is None
