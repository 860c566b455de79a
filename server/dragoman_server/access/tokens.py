"""The file of tokens: its lines, and who a token belongs to."""

import base64
import hashlib
import hmac
import logging
import math
import os
import re
import secrets
import stat
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from dragoman_server.access.caller import Caller, Grant
from dragoman_server.engine.sequence import Priority
from dragoman_server.errors import StartError

logger = logging.getLogger(__name__)

# A token is 256 random bits. Nobody can guess one, however quickly a guess is hashed: the slow hashes that passwords
# need would only slow down every call.
_TOKEN_BYTES = 32

_PREFIX = "sha256:"
# A token in the place of its name has more characters.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,38}")
_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")
_MAX_DIGESTS = 2  # of one name: its token, and the one that takes its place
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*")
_PRIORITIES = {priority.name.lower(): priority for priority in Priority}
_MIN_RATE, _MAX_RATE, _MAX_CONCURRENCY = 0.001, 1_000_000, 1_000_000
_MAX_FILE_BYTES = 1 << 20
_NOBODY: Final = (bytes(32), None)
_OPTIONS: Final = ("rate", "concurrency", "priority", "models", "admin")


class Line(NamedTuple):
    """A caller, as the file has it."""

    name: str
    digests: tuple[bytes, ...]  # of its tokens
    grant: Grant


def digest_of(token: str) -> bytes:
    """What a file has of a token."""
    return hashlib.sha256(token.encode()).digest()


def make_token(name: str, options: Mapping[str, str]) -> tuple[str, str]:
    """A new token, and the line for it in a file.

    Args:
        name: of its caller.
        options: as in the file, by name.

    Raises:
        StartError: the name or an option is not as it must be.
    """
    _check_name(name, "the token")
    _grant(options, "the token")
    token = base64.urlsafe_b64encode(secrets.token_bytes(_TOKEN_BYTES)).decode().rstrip("=")
    words = [name, _PREFIX + digest_of(token).hex(), *(f"{key}={value}" for key, value in options.items())]
    return token, " ".join(words)


def read_lines(text: str, path: Path) -> list[Line]:
    """The tokens of a file.

    Raises:
        StartError: a sentence that names the file, and the line that is not as it must be, or has what another has.
    """
    if text and not text.endswith("\n"):
        raise StartError(f"{path} has no newline at its end: it may be half of a file that is being written.")
    found: list[Line] = []
    seen: dict[tuple[str, str | bytes], int] = {}  # the number of the line
    for number, content in enumerate(text.split("\n"), start=1):
        content = content.partition("#")[0].strip()
        if not content:
            continue
        line = _read_line(content, f"{path}, line {number}")
        keys: list[tuple[str, str | bytes]] = [("name", line.name), *(("digest", digest) for digest in line.digests)]
        for key in keys:
            if (other := seen.setdefault(key, number)) != number:
                raise StartError(f"{path}, line {number} has the {key[0]} of line {other}.")
        found.append(line)
    if not found:
        raise StartError(f"{path} has no token: dragoman-server make-token NAME --file {path} adds one.")
    return found


def _read_line(content: str, where: str) -> Line:
    """The words of a line. What is wrong with one is told without the word: it may be a token in the wrong place."""
    name, *words = content.split()
    _check_name(name, where)
    digests = [_DIGEST.fullmatch(digest) for digest in words[0].split(",")] if words else [None]
    if None in digests:
        raise StartError(f"{where}: after the name must come {_PREFIX} and the token's digest, 64 hexadecimal digits.")
    found = {bytes.fromhex(digest[1]): None for digest in digests if digest is not None}
    if not len(found) == len(digests) <= _MAX_DIGESTS:
        raise StartError(f"{where}: a name may have {_MAX_DIGESTS} different digests, with a comma between them.")
    options: dict[str, str] = {}
    for word in words[1:]:
        key, separator, value = word.partition("=")
        if key not in _OPTIONS or not separator:
            raise StartError(f"{where}: what follows the digest must be {', '.join(f'{o}=' for o in _OPTIONS)}.")
        if key in options:
            raise StartError(f"{where}: {key} is given twice.")
        options[key] = value
    return Line(name, tuple(found), _grant(options, where))


def _check_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise StartError(f"{where}: a name must be 1 to 39 letters, digits and ._-, and begin with no sign.")


def _grant(options: Mapping[str, str], where: str) -> Grant:
    priority, models, admin = options.get("priority"), options.get("models"), options.get("admin")
    if priority is not None and priority not in _PRIORITIES:
        raise StartError(f"{where}: priority must be {', '.join(_PRIORITIES)} and is {priority!r:.40}.")
    names = None if models is None else models.split(",")
    if names is not None and not all(map(_MODEL.fullmatch, names)):
        raise StartError(f"{where}: models must be names of models without versions, with commas between them.")
    if admin not in (None, "yes", "no"):
        raise StartError(f"{where}: admin must be yes or no and is {admin!r:.40}.")
    return Grant(
        _rate(options["rate"], where) if "rate" in options else math.inf,
        _concurrency(options["concurrency"], where) if "concurrency" in options else None,
        Priority.INTERACTIVE if priority is None else _PRIORITIES[priority],
        None if names is None else frozenset(names),
        admin == "yes",
    )


def _rate(text: str, where: str) -> float:
    rate = float(text) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII) else 0.0
    if not _MIN_RATE <= rate <= _MAX_RATE:
        raise StartError(
            f"{where}: rate must be a number from {_MIN_RATE} to {_MAX_RATE} texts a second, not {text!r:.40}."
        )
    return rate


def _concurrency(text: str, where: str) -> int:
    number = int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else 0
    if not 1 <= number <= _MAX_CONCURRENCY:
        raise StartError(
            f"{where}: concurrency must be a whole number from 1 to {_MAX_CONCURRENCY} calls, not {text!r:.40}."
        )
    return number


def read_text(path: Path) -> str:
    """The text of a file of tokens.

    Raises:
        StartError: a sentence that names the file, which cannot be read, is open to others, or is no text of a size
            that such files have.
    """
    try:
        # The mode and the text are those of one file, whatever is put in its place meanwhile.
        with open(path, "rb", opener=_open) as file:
            return text_of(file, path)
    except OSError as error:
        raise StartError(f"{path} cannot be read: {error.strerror}.") from error


def text_of(file: BinaryIO, path: Path) -> str:
    """The same of a file that is open, without `O_NONBLOCK` only if it is known to be no pipe.

    Raises:
        OSError: it cannot be read.
    """
    mode = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(mode):
        raise StartError(f"{path} is no file.")
    if mode & stat.S_IRWXO:
        raise StartError(f"{path} is open to everybody here by its mode {stat.S_IMODE(mode):04o}: chmod o= {path}")
    raw = file.read(_MAX_FILE_BYTES + 1)
    if len(raw) > _MAX_FILE_BYTES:
        raise StartError(f"{path} has more than {_MAX_FILE_BYTES} bytes, which no file of tokens has.")
    try:
        return raw.decode("utf-8-sig")  # editors of Windows begin files with a byte order mark
    except UnicodeDecodeError:
        raise StartError(f"{path} is not UTF-8 text.") from None


class Tokens:
    """Who the tokens of a file belong to. Belongs to one event loop, but for `read`.

    Args:
        path: of the file.
        on_reload: is told whether a change of the file was taken over.

    Raises:
        StartError: a sentence that names the file, and what is wrong with it.
    """

    def __init__(self, path: Path, on_reload: Callable[[bool], None] = lambda _: None) -> None:
        self._path, self._on_reload = path, on_reload
        self._callers: dict[bytes, tuple[bytes, Caller | None]] = {}
        self._models: Callable[[], Collection[str]] | None = None
        self._seen = self._decided = self.read()
        self._take_over(self._seen)

    def __len__(self) -> int:
        return len(self._callers)

    def find(self, token: str) -> Caller | None:
        """Who a token belongs to.

        The time it takes says nothing of the tokens there are: what is looked up is a digest, whose bits a caller
        cannot choose one after the other, and the one that is found is compared in constant time.
        """
        digest = digest_of(token)
        known, caller = self._callers.get(digest, _NOBODY)
        return caller if hmac.compare_digest(known, digest) else None

    def read(self) -> str | StartError:
        """The text of the file, or what is wrong with it as a whole. May be called on any thread."""
        try:
            return read_text(self._path)
        except StartError as error:
            return error

    def update(self, read: str | StartError) -> None:
        """Takes over what was read where it is another than before; what is wrong is told once, and changes nothing.

        A file that is being written is seen half: nothing is made of a change before the next look finds it the same.
        """
        before, self._seen = self._seen, read
        if not _is_same(read, before) or _is_same(read, self._decided):
            return
        self._decided = read
        try:
            self._take_over(read)
        except StartError as error:
            logger.error("the tokens stay as they were: %s", error)
            self._on_reload(False)
        else:
            logger.info("%d tokens are read from %s", len(self), self._path)
            self._warn_of_models()
            self._on_reload(True)

    def expect_models(self, names: Callable[[], Collection[str]]) -> None:
        """Warns of models that lines name and that there are not, now and after each change of the file.

        Args:
            names: gives those of the models there are, without versions.
        """
        self._models = names
        self._warn_of_models()

    def _warn_of_models(self) -> None:
        if self._models is None:
            return
        known = {*self._models()}
        callers = {caller.name: caller for _, caller in self._callers.values() if caller is not None}
        for caller in callers.values():
            if missing := sorted((caller.grant.models or frozenset()) - known):
                logger.warning("the token %s may use %s, which no model is named", caller.name, ", ".join(missing))

    def _take_over(self, read: str | StartError) -> None:
        if isinstance(read, StartError):
            raise read
        lines = read_lines(read, self._path)
        # A name goes on with what it has used up, also under another token.
        by_name = {caller.name: caller for _, caller in self._callers.values() if caller is not None}
        callers: dict[bytes, tuple[bytes, Caller | None]] = {}
        for line in lines:
            caller = by_name.get(line.name) or Caller(line.name, line.grant)
            caller.grant = line.grant
            callers |= {digest: (digest, caller) for digest in line.digests}
        self._callers = callers


def _is_same(one: str | StartError, other: str | StartError) -> bool:
    return (type(one), str(one)) == (type(other), str(other))


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # of a pipe, open would wait for who writes
