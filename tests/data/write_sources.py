"""Writes tests/data/sources with the libraries whose files we read: `python tests/data/write_sources.py`.

Needs webdataset and datasets (1.0.2 and 5.2.0 at the time), which neither tga nor its tests need.
"""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import webdataset
from PIL import Image

OUT = Path(__file__).parent / "sources"


def picture(seed: int) -> Image.Image:
    """`tests.tiny.tiny_picture(seed, size=8)`."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size=(8, 8, 3), dtype=np.uint8))


def conversation(number: int) -> list[dict[str, str]]:
    """One question and one answer, with a picture unless the number is 2."""
    question = "How many?" if number == 2 else "<image>\nWhat?"
    return [{"from": "human", "value": question}, {"from": "gpt", "value": f"Answer {number}."}]


def main() -> None:
    """Four samples in each form."""
    turn = {"from": datasets.Value("string"), "value": datasets.Value("string")}
    features = {"id": datasets.Value("string"), "image": datasets.Image(), "conversations": datasets.List(turn)}
    rows = {
        "id": [f"r{i}" for i in range(4)],
        "image": [picture(i) if i != 2 else None for i in range(4)],
        "conversations": [conversation(i) for i in range(4)],
    }
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    made.save_to_disk(str(OUT / "hf_saved"), num_shards=2)
    made.to_parquet(str(OUT / "hf.parquet"))
    with webdataset.TarWriter(str(OUT / "webdataset-000000.tar")) as writer:
        for i in range(2):
            record = {"id": f"w{i}", "conversations": conversation(i)}
            writer.write({"__key__": f"00/{i:05d}", "png": picture(i), "json": record})
    with webdataset.TarWriter(str(OUT / "webdataset-000001.tar")) as writer:
        for i in range(2, 4):
            writer.write({"__key__": f"01/{i:05d}", "jpg": picture(i), "txt": f"Caption {i}."})


if __name__ == "__main__":
    main()
