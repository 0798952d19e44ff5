"""A build on Ray gives the files of a build in this process, and Ray is optional."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from retrieval_index.build import build_index
from retrieval_index.encode import EncoderSource
from retrieval_index.encoders import Encoder, EncoderSpec
from retrieval_index.errors import RetrievalError
from retrieval_index.ray_engine import RayEngine, with_threads
from retrieval_index.settings import IndexSettings
from retrieval_index.stages import Job
from tests.retrieval_index.test_build import contents
from tests.tiny_clip import random_captions

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra [ray]")


def test_without_ray_it_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RetrievalError, match=r"Ray is not installed. Given: engine=ray. .*tga-vlm\[ray\]"):
        RayEngine()


def test_actors_use_as_many_threads_as_this_process() -> None:
    import torch

    assert with_threads(EncoderSource(EncoderSpec("open_clip", "x"))).threads == torch.get_num_threads()
    assert with_threads(EncoderSource(EncoderSpec("open_clip", "x"), threads=7)).threads == 7


# Ray's actors start Python and torch anew: half a minute.
@pytest.mark.slow
@needs_ray
def test_the_same_bytes_as_in_this_process(
    tmp_path: Path, spec: EncoderSpec, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    (tmp_path / "c.txt").write_text("\n".join(random_captions(600)), encoding="utf-8")
    source = EncoderSource(spec, "cpu")
    settings = IndexSettings(shard_rows=150, batch_size=32, kind="ivf_flat", accept_recall=0)
    build_index([tmp_path / "c.txt"], tmp_path / "local", Job(encoder, source, settings))
    try:
        engine = RayEngine(actors=2)
        build_index([tmp_path / "c.txt"], tmp_path / "ray", Job(encoder, source, settings, engine=engine))
    finally:
        ray.shutdown()
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
