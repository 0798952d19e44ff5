"""The stored text targets of a run: which store it is, and the states that are missing in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from tqdm import tqdm

from tga.alignment.text_targets import TargetsIdentity, TextTargetStore, human_size
from tga.alignment.token_weights import MEAN, SIF, token_weights_fingerprint
from tga.data.collate import Collator
from tga.data.sample import Sample
from tga.terminal import literal
from tga.training.spans import pool_texts
from tga.vlm.families import Family, component
from tga.vlm.fingerprint import weights_fingerprint

BATCH_SIZE = 64


def stored_targets(
    model: Any,
    family: Family,
    collator: Collator,
    samples: Sequence[Sample],
    layers: tuple[int, ...],
    directory: Path,
    *,
    precision: str,
    dtype: str,
    device: torch.device,
    console: Console,
) -> TextTargetStore:
    """The store of this language model and these layers, with every text of the samples in it.

    Its size is said before anything is computed; what a stopped build has left is not computed again. One process at
    a time may do this.

    Args:
        layers: in rising order, as the objectives' union is.
        precision: of the training, "32-true" or "bf16-mixed": the states are computed as the training would.
        dtype: in which they are kept, a name of `tga.alignment.text_targets.DTYPES`.

    Raises:
        UserError: no room on the disk, an unreadable store, or an unknown dtype.
    """
    store = TextTargetStore(directory, targets_identity(model, family, collator, layers, precision, dtype))
    missing = store.missing(collator.target_texts(samples))
    size, rows = store.identity.row_bytes, len(store) + len(missing)
    said = (
        f"Text targets: {rows:,} texts x {len(layers)} layers x {store.identity.width} in {dtype}, "
        f"{human_size(rows * size)}, of which {human_size(len(store) * size)} are there: {store.directory}"
    )
    console.print(literal(said), soft_wrap=True)
    if not missing:
        return store
    store.require_space(len(missing))
    model.to(device)

    def pool(texts: Sequence[str]) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            return pool_texts(model, family, collator, texts, layers, device)[0]

    with tqdm(total=len(missing), desc="text targets", unit="text") as bar:
        store.add(missing, pool, batch_size=BATCH_SIZE, on_batch=lambda count: bar.update(count) and None)
    return store


def targets_identity(
    model: Any, family: Family, collator: Collator, layers: tuple[int, ...], precision: str, dtype: str
) -> TargetsIdentity:
    """What the states of a text depend on beside the text."""
    weight = component(model, family.embed_tokens).weight
    assert isinstance(weight, Tensor)
    weights = collator.token_weights
    pooling = MEAN if weights is None else f"{SIF} {token_weights_fingerprint(weights)}"
    return TargetsIdentity(
        language_model=weights_fingerprint({"language_model": component(model, family.language_model)}),
        tokenizer=hashlib.sha256(collator.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16],
        precision=f"{str(weight.dtype).removeprefix('torch.')} in {precision}",
        max_length=collator.max_length,
        layers=layers,
        width=weight.shape[1],
        dtype=dtype,
        pooling=pooling,
    )
