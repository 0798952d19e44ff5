"""Train the mini world's CLIP: an ordinary open_clip model, contrastively, on rendered pictures and their captions.

The pictures show every glyph, in a rendering between the projector's and the test set's; captions use every name.
Average pooling over the patch tokens makes every token of the last layer carry what is in the picture.
"""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.loss import ClipLoss
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from tga.mini.language import scene_caption
from tga.mini.lexicon import PICTURED
from tga.mini.scenes import PICTURE_SIZE, TEST, TRAIN, Scene, Style, draw, sample_scene
from tga.mini.tokenizer import clip_tokenizer, vocabulary

WEB = Style((32, 56), (26, 32), 18.0, 12.0, texture=False, blur=0.5, jpeg_quality=None)
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
STEPS, BATCH_SIZE, POOL = 1000, 256, 48_000  # optimiser steps, pictures a step, pictures drawn in all
CONTEXT = 24  # tokens; the longest caption of a picture has 23


def model_config() -> dict[str, object]:
    """The open_clip model configuration."""
    return {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": PICTURE_SIZE,
            "patch_size": 16,
            "width": 192,
            "head_width": 32,
            "layers": 5,
            "pool_type": "avg",
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": len(vocabulary()),
            "hf_tokenizer_name": "local",
            "width": 128,
            "heads": 4,
            "layers": 3,
            "pool_type": "eos",
            "pad_id": 0,
            "eos_id": 2,
        },
    }


def render(count: int, rng: random.Random, style: Style) -> tuple[list[Scene], np.ndarray]:
    """`count` scenes and their pictures, uint8 [count, 64, 64, 3]."""
    scenes = [sample_scene(rng, PICTURED, PICTURED, 0.5) for _ in range(count)]
    pictures = np.stack([np.asarray(draw(scene, rng, style)) for scene in scenes])
    return scenes, pictures


def to_pixels(pictures: np.ndarray) -> Tensor:
    """uint8 [n, h, w, 3] -> float32 [n, 3, h, w], normalised."""
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


@torch.no_grad()
def retrieval_at_1(model: open_clip.model.CLIP, seed: int, count: int = 500) -> float:
    """Share of test-style pictures whose best of `count` captions (all different) is their own."""
    rng = random.Random(seed)
    scenes, pictures = render(count, rng, TEST)
    tokenizer = clip_tokenizer()
    texts = [scene_caption(s, rng, left_to_right=True) for s in scenes]
    ids = tokenizer(texts, padding="max_length", max_length=CONTEXT, return_tensors="pt").input_ids
    model.eval()
    images = model.encode_image(to_pixels(pictures), normalize=True)
    captions = model.encode_text(ids, normalize=True)
    best = (images @ captions.T).argmax(1).tolist()
    names = [frozenset(t.name for t in s.things) for s in scenes]
    return sum(names[b] == names[i] for i, b in enumerate(best)) / count


def train(
    seed: int,
    *,
    steps: int = STEPS,
    batch_size: int = BATCH_SIZE,
    pool: int = POOL,
    learning_rate: float = 1e-3,
    dtype: torch.dtype = torch.float32,
) -> open_clip.model.CLIP:
    """A trained CLIP. Deterministic for a seed, a dtype of the matrix products and a number of threads."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    config = model_config()
    model = open_clip.model.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    tokenizer = clip_tokenizer()
    scenes, pictures = render(pool // 2, rng, TRAIN)
    more_scenes, more_pictures = render(pool - pool // 2, rng, WEB)
    scenes, pictures = scenes + more_scenes, np.concatenate([pictures, more_pictures])
    decay = [p for n, p in model.named_parameters() if p.ndim >= 2]
    plain = [p for n, p in model.named_parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.98),
    )
    contrastive = ClipLoss()
    order: list[int] = []
    progress = tqdm(range(steps), desc="clip", mininterval=5)
    started = time.monotonic()
    for step in progress:
        if len(order) < batch_size:
            order = rng.sample(range(len(scenes)), len(scenes))
        chosen, order = order[:batch_size], order[batch_size:]
        warm = min(1.0, (step + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        texts = [scene_caption(scenes[i], rng, left_to_right=True) for i in chosen]
        ids = tokenizer(texts, padding="max_length", max_length=CONTEXT, return_tensors="pt").input_ids
        # The fused attention is the slower one here: its backward costs more than the rest of a short step.
        products = torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
        with products, sdpa_kernel(SDPBackend.MATH):
            images, captions, scale = model(to_pixels(pictures[chosen]), ids)
            loss = contrastive(images.float(), captions.float(), scale)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}", s=f"{time.monotonic() - started:.0f}")
    return model.eval()


def directory_config() -> dict[str, object]:
    """open_clip_config.json of a local directory."""
    return {"model_cfg": model_config(), "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic"}}


def save(model: open_clip.model.CLIP, directory: Path) -> None:
    """Write the model as an open_clip local directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "open_clip_config.json").write_text(json.dumps(directory_config(), indent=1) + "\n")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, directory / "open_clip_model.safetensors")
    clip_tokenizer().save_pretrained(directory)
