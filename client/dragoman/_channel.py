"""How the SDK connects: the address, and the options of its channels.

The options are the same for a sync and an async channel. A server must allow their
keepalive: `grpc.http2.min_ping_interval_without_data_ms` at most KEEPALIVE_TIME_MS.
"""

import json
import os
import re
from collections.abc import Mapping
from ipaddress import IPv6Address, ip_address
from typing import Any

DEFAULT_PORT = 50051
DEFAULT_ADDRESS = f"localhost:{DEFAULT_PORT}"
ADDRESS_VARIABLE = "DRAGOMAN_ADDRESS"

DEFAULT_ADMIN_PORT = 50052
DEFAULT_ADMIN_ADDRESS = f"localhost:{DEFAULT_ADMIN_PORT}"
ADMIN_ADDRESS_VARIABLE = "DRAGOMAN_ADMIN_ADDRESS"

_HOST_AND_PORT = re.compile(
    r"(?P<resolver>dns:(?://[^/]*/)?)?(?P<host>[\w.-]+|\[(?P<ipv6>[^\[\]]+)\])(?::(?P<port>\d{1,5}))?", re.ASCII
)
# Targets of gRPC that are several addresses.
_LISTS = ("ipv4", "ipv6")
# Those that are no host: passed on as they are.
_OTHER_TARGETS = ("unix:", "unix-abstract:", "vsock:", "xds:")

# A server that hangs, or whose network is gone, is left within the sum of both: pings follow each other so, and wait so
# long for their answer. gRPC answers them on threads of its own, however busy the server is.
KEEPALIVE_TIME_MS = 2_000
_PING_TIMEOUT_MS = 3_000

# Translations of a full call with all their tokens stay far below this.
_MAX_RECEIVE_BYTES = 64 * 1024 * 1024

# Calls take turns on all servers behind the address. `dragoman._calls` decides which are sent again: gRPC would send
# them too, but not streams that have begun, and it would not know how long a full server asks to be left alone.
_BALANCED: Mapping[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
# Servers that say that they are NOT_SERVING, as those that stop do, are left: each is watched under this name, that of
# the server as a whole. Servers that do not offer this, such as some proxies, count as healthy.
_HEALTH_CHECKED: Mapping[str, Any] = {**_BALANCED, "healthCheckConfig": {"serviceName": ""}}


def resolve_address(address: str | None, default_port: int = DEFAULT_PORT) -> str:
    """The address to call, with a port: the given one, else $DRAGOMAN_ADDRESS, else the default.

    Args:
        address: the given one.
        default_port: the port of an address that has none.

    Raises:
        TypeError: it is not a text.
        ValueError: it is not an address.
    """
    if address is not None and not isinstance(address, str):
        raise TypeError(f"address is of type {type(address).__name__}, must be a str")
    address = address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
    if address.startswith(_OTHER_TARGETS):
        return address
    kind, _, several = address.partition(":")
    # gRPC itself would call addresses of a list that have no port on one of its own.
    if kind in _LISTS:
        resolved = [_with_port(each, kind, default_port) for each in several.split(",")]
    else:
        resolved = [_with_port(address, "", default_port)]
    if not all(resolved):
        raise ValueError(
            f"address is {address!r}, must be HOST or HOST:PORT, as in {DEFAULT_ADDRESS!r} and '[::1]:{DEFAULT_PORT}', "
            "or another target of gRPC, as in 'dns:///HOST:PORT', 'ipv4:10.0.0.1:50051,10.0.0.2:50051' and 'unix:PATH'"
        )
    return f"{kind}:{','.join(resolved)}" if kind in _LISTS else resolved[0]


def _with_port(address: str, kind: str, default_port: int) -> str:
    """An address with a port, "" where it is none; of the kind "ipv4" or "ipv6" where one is given."""
    parts = _HOST_AND_PORT.fullmatch(address)
    if parts is None or not _is_ipv6(parts["ipv6"]) or not 0 < int(parts["port"] or default_port) < 1 << 16:
        return ""
    if kind and (parts["resolver"] or _kind_of(parts["ipv6"] or parts["host"]) != kind):
        return ""
    return address if parts["port"] else f"{address}:{default_port}"


def _kind_of(host: str) -> str:
    """Of an address of numbers; "" of a name."""
    try:
        return f"ipv{ip_address(host).version}"
    except ValueError:
        return ""


def _is_ipv6(host: str | None) -> bool:
    """Whether what stands in brackets, if there are any, is an IPv6 address."""
    try:
        if host is not None:
            IPv6Address(host)
    except ValueError:
        return False
    return True


def is_local(address: str) -> bool:
    """Whether what is sent to an address, one of `resolve_address`, stays on this machine, see `channel_options`."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    return all(map(_is_here, map(_HOST_AND_PORT.fullmatch, listed(address))))


def listed(address: str) -> list[str]:
    """The addresses that a target names, one or several."""
    kind, _, rest = address.partition(":")
    return rest.split(",") if kind in _LISTS else [address]


def _is_here(parts: re.Match[str] | None) -> bool:
    # A server of names that was chosen may give any address for any name.
    if parts is None or parts["resolver"] not in (None, "dns:", "dns:///"):
        return False
    host = parts["ipv6"] or parts["host"]
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def channel_options(address: str, *, is_health_checked: bool) -> list[tuple[str, int | str]]:
    """The options of a channel to a Dragoman server.

    Args:
        address: of the server.
        is_health_checked: whether only servers that are SERVING are called, as is right for translations. What is
            asked about a server, or done to it, concerns the others too.
    """
    return [
        ("grpc.service_config", json.dumps(_HEALTH_CHECKED if is_health_checked else _BALANCED)),
        # Else a DNS TXT record could replace the configuration above.
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.max_receive_message_length", _MAX_RECEIVE_BYTES),
        # The timeout of the keepalive does not apply while a bandwidth probe is under way: that
        # one has the ping timeout, of 60 s unset.
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
        # Pings go on through a call that waits long without data.
        ("grpc.http2.max_pings_without_data", 0),
        # A restarted server is found within seconds, not after up to two minutes.
        # A new client tries at once, whatever an older one to the same address is waiting for.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # The variable http_proxy holds for "localhost", too, and what is sent would leave this machine.
        *([("grpc.enable_http_proxy", 0)] if is_local(address) else []),
    ]
