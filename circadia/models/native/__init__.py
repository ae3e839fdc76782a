"""Circadia's own models as they learn a stream: their memories carried over it, chunk by chunk. Start with `native`."""

from circadia.models.native.build import able, native
from circadia.models.native.model import NativeModel
from circadia.models.native.settings import NativeLevel, Settings

__all__ = ["NativeLevel", "NativeModel", "Settings", "able", "native"]
