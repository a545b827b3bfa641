"""How the typed clients reach a service: an address with defaults, or a full channel configuration."""

from __future__ import annotations

import grpc

from accord.rpc.channels import ChannelConfig, open_async_channel, open_channel

Target = ChannelConfig | str
"""``host:port``, or a configuration with TLS, deadline and limits."""


def connect(target: Target) -> tuple[grpc.Channel, float]:
    """Returns a blocking channel and the seconds that a call without a timeout of its own gets."""
    config = channel_config(target)
    return open_channel(config), config.default_timeout_seconds


def connect_async(target: Target) -> tuple[grpc.aio.Channel, float]:
    """As `connect`, for asyncio; call it on the event loop that will use the channel."""
    config = channel_config(target)
    return open_async_channel(config), config.default_timeout_seconds


def channel_config(target: Target) -> ChannelConfig:
    """Returns the target as a configuration."""
    return ChannelConfig(address=target) if isinstance(target, str) else target
