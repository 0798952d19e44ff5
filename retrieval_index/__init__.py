"""An index of captions: build it from files, open it, ask it with pictures or text. Works without the rest of `tga`.

from retrieval_index import CaptionIndex, EncoderSpec, load_encoder

spec = EncoderSpec("open_clip", "ViT-B-32", "laion2b_s34b_b79k")
index = CaptionIndex.build("captions.txt", "index", spec)
scores, rows = index.search(load_encoder(spec).encode_images([Path("picture.jpg")], batch_size=1), k=5)
index.captions(rows[0])
"""

from retrieval_index.build import build_index
from retrieval_index.encoders import Encoder, EncoderSpec, load_encoder
from retrieval_index.errors import RetrievalError
from retrieval_index.index import CaptionIndex
from retrieval_index.planner import Plan, choose_plan
from retrieval_index.readers import find_files
from retrieval_index.settings import IndexSettings

__all__ = [
    "CaptionIndex",
    "Encoder",
    "EncoderSpec",
    "IndexSettings",
    "Plan",
    "RetrievalError",
    "build_index",
    "choose_plan",
    "find_files",
    "load_encoder",
]
