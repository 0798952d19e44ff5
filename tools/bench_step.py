"""What a training step costs with the alignment, without it, and in plain transformers; one process.

    python -m tools.bench_step                       # a table
    python -m tools.bench_step --json                # flat numbers
    python -m tools.bench_step --model llava7b --batch 0 --device cuda --dtype bfloat16 --json

A random LLaVA of 32 decoder layers with everything but the projector frozen takes steps of 576 image tokens, 70 prompt
tokens of which 30 are retrieved text, 40 answer tokens and 60 caption tokens:

    hf       LlavaForConditionalGeneration.forward(labels=...), which computes logits at every position
    plain    our step without an objective
    stored   TGA at layers 10 to 18, the caption's states read with the batch
    online   TGA at layers 10 to 18, the caption run through the language model up to layer 18

The arms take turns in rotating order, so that all meet the same load, and a figure is the median over the turns of the
ratio to the plain time of the same turn. On a CPU time is the processor time of this process, which other processes
change less than the clock. Memory is the peak of one step: of tensors on a GPU, of the resident set on Linux. On a CPU
the width is small, so that the head (width x vocabulary) is a larger share of the work than in a 7B model: the gain of
`plain` over `hf` in time is larger here. `--model llava7b` has the shapes of LLaVA-1.5-7B with its vision tower, and
`--batch 0` takes the largest power of two at which a step of every arm fits on the GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from tga.alignment.tga import TGA
from tga.data.collate import Batch
from tga.training.module import AlignmentModule
from tga.training.throughput import count, matmul_flops_per_s, model_flops
from tga.vlm.families import LLAVA
from tga.vlm.freezing import freeze
from tga.vlm.lm_loss import IGNORED_LABEL
from tools.bench_steering import llava_of_shape

LAYERS, SIDE, IMAGE, PROMPT, RETRIEVED, ANSWER, CAPTION = 32, 24, 576, 70, 30, 40, 60
ALIGNED = tuple(range(10, 19))
ARMS = ("plain", "stored", "online", "hf")
LIMITS = {
    "stored_over_plain_time": 1.02,
    "online_over_plain_time": 1.10,
    "stored_over_plain_peak_memory": 1.05,
    "online_over_plain_peak_memory": 1.05,
    "plain_over_hf_plain_time": 0.95,
}


@dataclass
class Bench:
    """A model and what its steps are timed on."""

    model: Any
    device: torch.device

    def batch(self, size: int, layers: Sequence[int] = (), *, stored: bool = False) -> Batch:
        """Random tokens of the shape in the module's head; with stored states of the caption at `layers`."""
        generator = torch.Generator().manual_seed(0)
        total, words = PROMPT + IMAGE + ANSWER, self.model.config.text_config.vocab_size - 1
        ids = torch.randint(1, words, (size, total), generator=generator)
        image = torch.zeros(size, total, dtype=torch.bool)
        image[:, PROMPT : PROMPT + IMAGE] = True
        ids[image] = self.model.config.image_token_id
        retrieved = torch.zeros_like(image)
        retrieved[:, 1 : 1 + RETRIEVED] = True
        labels = ids.clone()
        labels[:, : PROMPT + IMAGE] = IGNORED_LABEL
        caption = torch.randint(1, words, (size, CAPTION), generator=generator)
        spoken = torch.ones_like(caption, dtype=torch.bool)
        spoken[:, 0] = False
        width = self.model.config.text_config.hidden_size
        pixels = torch.randn(size, 3, 14 * SIDE, 14 * SIDE, generator=generator)
        return Batch(
            ids=[str(row) for row in range(size)],
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            labels=labels,
            pixel_values=pixels.to(next(self.model.parameters()).dtype),
            image_mask=image,
            retrieved_mask=retrieved,
            caption_ids=caption,
            caption_attention_mask=torch.ones_like(caption),
            caption_mask=spoken,
            caption_states=torch.randn(len(layers), size, width, generator=generator) if stored else None,
        ).to(self.device)

    def losses(self, arm: str, size: int, layers: Sequence[int]) -> Callable[[], dict[str, Tensor]]:
        """The losses of an arm's step, ready to be computed."""
        batch = self.batch(size, layers, stored=arm == "stored")
        objectives = [TGA(tuple(layers))] if arm in ("stored", "online") else []
        module = AlignmentModule(self.model, LLAVA, objectives, learning_rate=1e-3, total_steps=10)

        def compute() -> dict[str, Tensor]:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.model.dtype == torch.bfloat16):
                if arm == "hf":
                    return {"lm": self.model(**batch.model_inputs(), labels=batch.labels, use_cache=False).loss}
                return module.step_losses(batch, 0.0)

        return compute

    def step(self, arm: str, size: int, layers: Sequence[int] | None = None) -> Callable[[], None]:
        """One forward and backward pass of an arm, ready to run."""
        losses = self.losses(arm, size, ALIGNED if layers is None else layers)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]

        def run() -> None:
            torch.stack([value.float() for value in losses().values()]).sum().backward()
            for parameter in parameters:
                parameter.grad = None

        return run

    def seconds(self, run: Callable[[], None]) -> float:
        """Of one run: on a CPU the process's own time, on a GPU the clock's with all work done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            started = time.perf_counter()
            run()
            torch.cuda.synchronize(self.device)
            return time.perf_counter() - started
        started = time.process_time()
        run()
        return time.process_time() - started

    def peak_mib(self, run: Callable[[], None]) -> float:
        """The most memory during one run, weights included."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            run()
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier runs have freed counts no longer
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak, see proc(5)
        run()
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024


def llava7b(device: torch.device, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    """The shapes of LLaVA-1.5-7B, Vicuna-7B and CLIP ViT-L/14-336, with random weights, made where they shall be."""
    text = LlamaConfig(
        vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=LAYERS, num_attention_heads=32,
        num_key_value_heads=32, max_position_embeddings=4096,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=14 * SIDE,
        patch_size=14,
    )  # fmt: skip
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=32000)
    with device:
        return LlavaForConditionalGeneration._from_config(config, dtype=dtype).eval()


def largest_batch(bench: Bench) -> int:
    """The largest power of two at which a step of every arm fits on the device; 1 where not even that is known to."""
    size = 1
    while _fits(bench, 2 * size):
        size *= 2
    return size


def _fits(bench: Bench, size: int) -> bool:
    try:
        for arm in ARMS:
            bench.step(arm, size)()
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        for parameter in bench.model.parameters():
            parameter.grad = None
        gc.collect()
        torch.cuda.empty_cache()


def measure(bench: Bench, batch: int, turns: int) -> dict[str, float]:
    """All figures, flat."""
    steps = {arm: bench.step(arm, batch) for arm in ARMS}
    for run in steps.values():
        run()
    taken: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for turn in range(turns):
        for place in range(len(ARMS)):
            arm = ARMS[(turn + place) % len(ARMS)]
            taken[arm].append(bench.seconds(steps[arm]))
    values = {f"{arm}_s": median(seconds) for arm, seconds in taken.items()}
    for arm in ("stored", "online"):
        ratios = [ours / plain for ours, plain in zip(taken[arm], taken["plain"], strict=True)]
        values[f"{arm}_over_plain_time"] = median(ratios)
    values["plain_over_hf_plain_time"] = median(p / h for p, h in zip(taken["plain"], taken["hf"], strict=True))
    peaks = {arm: bench.peak_mib(steps[arm]) for arm in ARMS}
    values |= {f"{arm}_peak_mib": peak for arm, peak in peaks.items()}
    values |= {f"{arm}_over_plain_peak_memory": peaks[arm] / peaks["plain"] for arm in ("stored", "online")}
    for number in (1, len(ALIGNED), LAYERS):
        layers = tuple(range(LAYERS - number + 1, LAYERS + 1))
        values[f"online_{number}_layers_peak_mib"] = bench.peak_mib(bench.step("online", batch, layers))
    for size in (1, 2, 4):
        values[f"online_batch_{size}_peak_mib"] = bench.peak_mib(bench.step("online", size))
    if bench.device.type == "cuda":
        values |= _speed(bench, batch, values)
    return values


def _speed(bench: Bench, batch: int, values: dict[str, float]) -> dict[str, float]:
    """Samples per second, and the share of a measured matrix product's arithmetic that the step needs; on a GPU."""
    needed = model_flops(bench.model, LLAVA).of(count(bench.batch(batch)).tolist())
    there = matmul_flops_per_s(bench.device, next(bench.model.parameters()).dtype)
    seconds = values["stored_s"]
    return {"samples_per_s": batch / seconds, "model_flop_utilisation": needed / seconds / there}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="flat numbers on stdout")
    parser.add_argument("--model", default="small", choices=["small", "llava7b"], help="small: of --width")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--batch", type=int, default=2, help="0, on a GPU: the largest power of two that fits")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    chosen = parser.parse_args(arguments)
    torch.manual_seed(0)
    device, dtype = torch.device(chosen.device), getattr(torch, chosen.dtype)
    if chosen.batch == 0 and device.type != "cuda":
        parser.error("--batch 0 is for a GPU: a CPU has no such bound; name a batch")
    if chosen.model == "llava7b":
        model = llava7b(device, dtype)
    else:
        model = llava_of_shape(chosen.width, LAYERS, SIDE, chosen.vocabulary).to(device, dtype)
    freeze(model, LLAVA, ["projector"])
    model.model.multi_modal_projector.float()
    bench = Bench(model, device)
    batch = chosen.batch or largest_batch(bench)
    values = measure(bench, batch, chosen.turns)
    text = model.config.text_config
    settings = {"width": text.hidden_size, "vocabulary": text.vocab_size, "batch": batch, "turns": chosen.turns}
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    if chosen.json:
        print(json.dumps({**settings, "device": device_name, "threads": torch.get_num_threads(), **values}))
        return
    for key, value in values.items():
        limit = f"   limit {LIMITS[key]}" if key in LIMITS else ""
        print(f"{key:<36}{value:>12.4f}{limit}")


if __name__ == "__main__":
    main()
