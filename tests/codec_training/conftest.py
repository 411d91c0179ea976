"""The tiny codec, model and snapshot of the codec's tests."""

from tests.codec.conftest import codec, model, snapshot

__all__ = ["codec", "model", "snapshot"]
