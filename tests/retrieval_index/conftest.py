"""One tiny open_clip encoder for all tests of the index."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieval_index.encoders import Encoder, EncoderSpec, load_encoder
from tests.tiny_clip import write_tiny_clip


@pytest.fixture(scope="session")
def spec(tmp_path_factory: pytest.TempPathFactory) -> EncoderSpec:
    directory: Path = tmp_path_factory.mktemp("encoder")
    return EncoderSpec("open_clip", write_tiny_clip(directory / "clip"))


@pytest.fixture(scope="session")
def encoder(spec: EncoderSpec) -> Encoder:
    return load_encoder(spec, device="cpu")
