"""How the SDK connects: the address, and the options of its channels.

The options are the same for a sync and an async channel. A server must allow their
keepalive: `grpc.http2.min_ping_interval_without_data_ms` at most KEEPALIVE_TIME_MS.
"""

import json
import os

DEFAULT_ADDRESS = "localhost:50051"
ADDRESS_VARIABLE = "DRAGOMAN_ADDRESS"

KEEPALIVE_TIME_MS = 10_000
_PING_TIMEOUT_MS = 5_000

# Translations of a full call with all their tokens stay far below this.
_MAX_RECEIVE_BYTES = 64 * 1024 * 1024

# Translating has no side effects, so a call that did not get through may be sent again.
# The first entry holds for all methods; a health check wants the truth, not a retry.
_SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            },
            {"name": [{"service": "grpc.health.v1.Health"}]},
        ],
        # When most calls fail, retries would only add to the load: they stop at half of the
        # tokens. That leaves room for 100 calls that are lost together with their server.
        "retryThrottling": {"maxTokens": 200, "tokenRatio": 0.1},
    }
)


def resolve_address(address: str | None) -> str:
    """The address to call: the given one, else $DRAGOMAN_ADDRESS, else the default."""
    return address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS


def channel_options() -> list[tuple[str, int | str]]:
    """The options of a channel to a Dragoman server."""
    return [
        ("grpc.service_config", _SERVICE_CONFIG),
        # Else a DNS TXT record could replace the configuration above.
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.max_receive_message_length", _MAX_RECEIVE_BYTES),
        # Keepalive notices a server that stopped answering. Its own timeout does not apply
        # while a bandwidth probe is under way: that one has the ping timeout, of 60 s unset.
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
        # Pings go on through a call that waits long without data.
        ("grpc.http2.max_pings_without_data", 0),
        # A restarted server is found within seconds, not after up to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
