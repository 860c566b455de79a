import socket
from collections.abc import Iterator

import pytest

from dragoman_server.errors import StartError
from dragoman_server.option_texts import parse_address
from dragoman_server.wire.addresses import check_free


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("localhost:65535", ("localhost", 65535)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_addresses_are_split(address: str, expected: tuple[str, int]) -> None:
    assert parse_address("listen", address) == expected


@pytest.mark.parametrize("address", ["", ":80", "host", "host:", "host:-1", "host:65536", "host:٣", "::1:80", "[]:80"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(StartError, match="listen must be HOST:PORT"):
        parse_address("listen", address)


@pytest.fixture(params=[False, True])
def port_in_use(request: pytest.FixtureRequest) -> Iterator[int]:
    """A port that another server listens on, with or without the wish to share it."""
    with socket.create_server(("127.0.0.1", 0), reuse_port=request.param) as other:
        yield other.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_port_in_use_is_refused(host: str, port_in_use: int) -> None:
    with pytest.raises(StartError, match=f"cannot listen on {host}:{port_in_use}: Address already in use"):
        check_free("listen", f"{host}:{port_in_use}")


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(StartError, match=r"cannot listen on 203\.0\.113\.9:80: Cannot assign"):
        check_free("listen", "203.0.113.9:80")


def test_a_name_without_address_is_refused() -> None:
    with pytest.raises(StartError, match=r"cannot listen on no\.such\.host\.invalid:80: "):
        check_free("listen", "no.such.host.invalid:80")


def test_a_free_port_stays_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    check_free("listen", f"127.0.0.1:{port}")
    with socket.create_server(("127.0.0.1", port)):
        pass
