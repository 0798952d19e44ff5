"""An index belongs to its encoder: by name, by width, and by the vectors of a fixed sentence and a fixed picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retrieval_index.encoders import (
    GOLDEN_COSINE,
    GOLDEN_PICTURE_COSINE,
    Encoder,
    EncoderSpec,
    golden_embedding,
    golden_picture_embedding,
)
from retrieval_index.errors import RetrievalError
from retrieval_index.manifest import EncoderRecord


def check_spec(record: EncoderRecord, spec: EncoderSpec, place: Path) -> None:
    """Raise RetrievalError unless `spec` names the encoder of the index at `place`."""
    spec.check()
    if spec.identity() != record.identity:
        raise _other_encoder(place, f"{spec.identity()} ({spec.name})", f"{record.identity} ({record.name})")


def check_encoder(record: EncoderRecord, encoder: Encoder, place: Path) -> None:
    """Raise RetrievalError unless the loaded encoder has the width and golden embeddings of the index at `place`."""
    if encoder.width != record.width:
        raise _other_encoder(place, f"width {encoder.width}", f"width {record.width}")
    pairs = [("sentence", golden_embedding(encoder), record.golden_sentence, GOLDEN_COSINE)]
    picture = golden_picture_embedding(encoder)
    if picture is not None and record.golden_picture is not None:
        pairs.append(("picture", picture, record.golden_picture, GOLDEN_PICTURE_COSINE))
    for name, found, recorded, least in pairs:
        cosine = float(np.dot(found, np.asarray(recorded)))
        if not cosine >= least:
            raise _other_encoder(
                place,
                f"an encoder whose vector of the golden {name} has cosine {cosine:.4f} to the recorded one",
                f"cosine >= {least}",
            )


def _other_encoder(place: Path, given: str, allowed: str) -> RetrievalError:
    return RetrievalError(
        f"The index {place} was made with another encoder",
        given=given,
        allowed=allowed,
        remedy="encoder.name= and encoder.pretrained= of the index, or build another one with out=DIR",
    )
