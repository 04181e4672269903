"""The Python client: `Client` for threads, `AsyncClient` for event loops."""

from ganserve.client.async_client import AsyncClient
from ganserve.client.channel_security import ChannelSecurity
from ganserve.client.failures import CallError
from ganserve.client.messages import EncodedFormat, ImageFormat, ImageRequest
from ganserve.client.models import ModelInfo
from ganserve.client.sync_client import Client

__all__ = [
    "AsyncClient",
    "CallError",
    "ChannelSecurity",
    "Client",
    "EncodedFormat",
    "ImageFormat",
    "ImageRequest",
    "ModelInfo",
]
