"""Encoding against the libraries called plainly, and a whole encode stage against the bare model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from retrieval_index.corpus import read_file, write_rows
from retrieval_index.encode import EncoderSource
from retrieval_index.encoders import EncoderSpec
from retrieval_index.engines import LocalEngine
from retrieval_index.open_clip_encoder import OpenClipEncoder
from retrieval_index.readers import Keys
from retrieval_index.sentence_encoder import SentenceEncoder
from retrieval_index.store import embeddings_path
from tools.index_bench.synthetic import WORDS, captions
from tools.index_bench.timing import ratio_of_medians

BATCH = 64
CLIP_CAPTIONS, SENTENCES = 512, 2048
SENTENCE_WIDTH, SENTENCE_LAYERS = 384, 6  # those of all-MiniLM-L6-v2


def open_clip_weights(directory: Path) -> Path:
    """A ViT-B-32 with random weights, as a file: how long it takes does not depend on what it has learned."""
    path = directory / "vit_b_32.pt"
    if not path.exists():
        torch.manual_seed(0)
        torch.save(open_clip.create_model("ViT-B-32").state_dict(), path)
    return path


def open_clip_figures(directory: Path, turns: int, scale: float) -> dict[str, float]:
    """Captions per second against `encode_text(tokenizer(captions))`, cosines to it, and the pipeline's overhead."""
    encoder = OpenClipEncoder("ViT-B-32", str(open_clip_weights(directory)))
    texts = captions(max(BATCH, int(CLIP_CAPTIONS * scale)))
    model, tokenizer = encoder._model, open_clip.get_tokenizer("ViT-B-32")

    def plainly() -> np.ndarray:
        with torch.inference_mode():
            parts = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
            return torch.cat([model.encode_text(tokenizer(part), normalize=True) for part in parts]).numpy()

    def ours() -> np.ndarray:
        return encoder.encode_texts(texts, batch_size=BATCH)

    cosines = (plainly() * ours()).sum(axis=1)
    figures = {
        "encode_over_open_clip": 1 / ratio_of_medians(ours, plainly, turns),
        "encode_cosine_min": float(cosines.min()),
    }
    return figures | {"pipeline_over_bare_encoder": _pipeline(directory, encoder, texts, turns)}


def _pipeline(directory: Path, encoder: OpenClipEncoder, texts: list[str], turns: int) -> float:
    """The encode stage of a build (rows in, shards out, hashes) against the model on the same batches of tokens."""
    work = directory / "pipeline"
    (directory / "captions.jsonl").write_text("\n".join(json.dumps({"caption": text}) for text in texts))
    read_file(directory / "captions.jsonl", work, 0, Keys(), 2000)
    half = -(-len(texts) // 2)
    written = write_rows(work, 1, (), first_shard=0, generation=0, shard_rows=half, memory=2**30)
    sizes = {n: min(half, written.rows - n * half) for n in range(-(-written.rows // half))}
    batches: list[torch.Tensor] = []
    for shard in range(len(sizes)):
        tokens = encoder._tokenize(texts[shard * half : (shard + 1) * half])
        lengths = encoder._text.lengths(tokens)
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            batches.append(tokens[torch.from_numpy(rows)][:, : int(lengths[rows].max())].long())

    def bare() -> None:
        with torch.inference_mode():
            for batch in batches:
                torch.nn.functional.normalize(encoder._text.encode(batch), dim=-1)

    def stage() -> None:
        for number in sizes:
            embeddings_path(work, number).unlink(missing_ok=True)
            (work / "encoded" / f"{number:05d}.json").unlink(missing_ok=True)
        source = EncoderSource(EncoderSpec("open_clip", "ViT-B-32"))
        LocalEngine().encode(work, sizes, encoder, source, batch_size=BATCH, dtype="float32", report=lambda done: None)

    return ratio_of_medians(stage, bare, turns)


def sentence_model(directory: Path) -> Path:
    """A sentence-transformers model of MiniLM's shape with random weights."""
    path = directory / "sentence"
    if not path.exists():
        vocabulary = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(WORDS)])}
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
        )
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
        )
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(fast),
            hidden_size=SENTENCE_WIDTH,
            num_hidden_layers=SENTENCE_LAYERS,
            num_attention_heads=12,
            intermediate_size=4 * SENTENCE_WIDTH,
        )
        BertModel(config).save_pretrained(directory / "bert")
        fast.save_pretrained(directory / "bert")
        SentenceTransformer(str(directory / "bert"), device="cpu", trust_remote_code=False).save(str(path))
    return path


def sentences(directory: Path, turns: int, scale: float) -> dict[str, float]:
    """Captions per second against `SentenceTransformer.encode`."""
    path = sentence_model(directory)
    encoder = SentenceEncoder(str(path), None)
    library = SentenceTransformer(str(path), device="cpu", trust_remote_code=False)
    texts = captions(max(BATCH, int(SENTENCES * scale)))

    def plainly() -> np.ndarray:
        return library.encode(texts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)

    def ours() -> np.ndarray:
        return encoder.encode_texts(texts, batch_size=BATCH)

    np.testing.assert_allclose(ours(), plainly(), atol=1e-4)
    return {"encode_over_sentence_transformers": 1 / ratio_of_medians(ours, plainly, turns)}
