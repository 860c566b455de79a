import pytest

from dragoman import AsyncClient, Client
from dragoman._channel import ADDRESS_VARIABLE, resolve_address


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("localhost", "localhost:50051"),
        ("translate.example", "translate.example:50051"),
        ("translate_1", "translate_1:50051"),
        ("127.0.0.1", "127.0.0.1:50051"),
        ("[::1]", "[::1]:50051"),
        ("[fe80::1%eth0]", "[fe80::1%eth0]:50051"),
        ("dns:///translate.example", "dns:///translate.example:50051"),
        ("dns://8.8.8.8/translate.example", "dns://8.8.8.8/translate.example:50051"),
        ("dns:translate.example", "dns:translate.example:50051"),
        ("dns:///[::1]", "dns:///[::1]:50051"),
        ("ipv4:127.0.0.1", "ipv4:127.0.0.1:50051"),
        ("ipv4:10.0.0.1,10.0.0.2:7", "ipv4:10.0.0.1:50051,10.0.0.2:7"),
        ("ipv6:[::1]", "ipv6:[::1]:50051"),
    ],
)
def test_an_address_without_a_port_has_the_default_port(address: str, expected: str) -> None:
    assert resolve_address(address) == expected
    assert resolve_address(address, 50052) == expected.replace(":50051", ":50052")


@pytest.mark.parametrize(
    "address",
    [
        "localhost:1",
        "127.0.0.1:65535",
        "[::1]:50052",
        "dns:///translate.example:443",
        "unix:/run/dragoman.sock",
        "unix:///run/dragoman.sock",
        "unix-abstract:dragoman",
        "ipv4:127.0.0.1:50051,127.0.0.1:50052",
        "ipv6:[::1]:50051",
        "xds:///translate",
    ],
)
def test_other_addresses_are_taken_as_they_are(address: str) -> None:
    assert resolve_address(address) == address


@pytest.mark.parametrize("address", [None, ""])
def test_no_address_is_that_of_the_environment_or_the_default(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    assert resolve_address(address) == "localhost:50051"
    monkeypatch.setenv(ADDRESS_VARIABLE, "translate.example")
    assert resolve_address(address) == "translate.example:50051"


@pytest.mark.parametrize(
    "address",
    [
        "http://localhost:50051",
        "localhost:",
        "localhost:grpc",
        "localhost:0",
        "localhost:65536",
        "localhost:99999999999999999999",
        ":50051",
        "localhost:50051/",
        "local host",
        "localhost:50051\n",
        "::1",
        "[::1",
        "[localhost]",
        "[]",
        "dns:///",
        "ipv4:",
        "ipv4:localhost",
        "ipv4:127.0.0.1:1,%310.0.0.1:1",
        "ipv4:10.0.0.1,",
        "ipv4:[::1]",
        "ipv4:dns:10.0.0.1",
        "ipv6:10.0.0.1",
        "ipv6:::1",
        "é:50051",
    ],
)
@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_what_is_no_address_is_a_value_error(
    address: str, client: type[Client | AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="must be HOST or HOST:PORT, as in 'localhost:50051'") as caught:
        client(address)
    assert repr(address) in str(caught.value)
    monkeypatch.setenv(ADDRESS_VARIABLE, address)
    with pytest.raises(ValueError, match="must be HOST or HOST:PORT"):
        client()


@pytest.mark.parametrize("address", [50051, b"localhost", ("localhost", 50051), True])
@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_an_address_that_is_no_text_is_a_type_error(address: object, client: type[Client | AsyncClient]) -> None:
    with pytest.raises(TypeError, match=f"address is of type {type(address).__name__}, must be a str"):
        client(address)  # type: ignore[arg-type]
