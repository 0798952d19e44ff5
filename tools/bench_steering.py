"""What CMRM costs: time for each prompt and each generated token against the plain model, in one process.

    python -m tools.bench_steering                      # a table
    python -m tools.bench_steering --json               # flat numbers
    python -m tools.bench_steering --width 4096 --layers 32 --image-tokens 24 --device cuda --dtype bfloat16

A random LLaVA of the given shape answers one request at a time. Plain, data-set and sample level take turns in rotating
order, so that all meet the same load, and a figure is the median over the turns of the ratio to the plain time of the
same turn. Hooks are put on outside the timed part of a decoding step and inside that of a prompt, as they would be in
use. A sample-level prompt holds the two ends behind the kept beginnings; `sample_first` runs the beginnings as well, as
the first of many requests does.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, DynamicCache, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from tga.steering.cmrm import RequestShift
from tga.steering.hooks import steered
from tga.vlm.families import LLAVA, component
from tga.vlm.kv_cache import cache_argument

PATCH = 14
GOAL = 1.05  # of dataset_over_plain_decode_time
DECODING, PROMPTS = ("plain", "dataset", "sample"), ("plain", "dataset", "sample", "sample_first")


def llava_of_shape(width: int, layers: int, image_tokens: int, vocabulary: int = 2000) -> LlavaForConditionalGeneration:
    """A random LLaVA: heads of 64, Llama-2's shape of the MLP, and a small vision tower of `image_tokens`^2 patches."""
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=int(width * 2.6875) // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        num_key_value_heads=max(1, width // 64),
        max_position_embeddings=4096,
    )
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=PATCH * image_tokens,
        patch_size=PATCH,
    )
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=vocabulary - 1)
    return LlavaForConditionalGeneration(config).eval()


@dataclass
class Bench:
    """A model, one request, and how its parts are timed."""

    model: LlavaForConditionalGeneration
    image_tokens: int
    prefix: int
    words: int

    def __post_init__(self) -> None:
        self.layers = tuple(range(1, self.model.config.text_config.num_hidden_layers + 1))
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(1, 1000, (self.prefix + self.words,), generator=generator).tolist()
        picture = [self.model.config.image_token_id] * self.image_tokens**2
        self.plain_row = tokens
        self.pictured_row = [*tokens[: self.prefix], *picture, *tokens[self.prefix :]]
        side = PATCH * self.image_tokens
        weight = next(self.model.parameters())
        pixels = torch.randn(1, 3, side, side, generator=generator)
        self.pixels = pixels.to(weight.device, weight.dtype)
        width = self.model.config.text_config.hidden_size
        shifts = 0.1 * torch.randn(len(self.layers), width, generator=generator)
        self.dataset = dict(zip(self.layers, shifts, strict=True))
        self.request_shift = self.new_request_shift()

    def inputs(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """What the model's forward takes of rows with the picture."""
        ids = torch.tensor([list(row) for row in rows], device=self.model.device)
        pixels = self.pixels.expand(len(ids), -1, -1, -1)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}

    def shifts(self, arm: str) -> Mapping[int, Tensor]:
        """What an arm takes away: nothing, one shift for all, or the request's own, which is computed here."""
        if arm == "plain":
            return {}
        if arm == "dataset":
            return self.dataset
        request_shift = self.request_shift if arm == "sample" else self.new_request_shift()
        return dict(zip(self.layers, request_shift([self.pictured_row], [self.plain_row]), strict=True))

    def new_request_shift(self) -> RequestShift:
        """Without a kept beginning."""
        return RequestShift(self.model, LLAVA, self.layers, self.inputs)

    def corrected(self, shifts: Mapping[int, Tensor]) -> AbstractContextManager[Any]:
        """The block in which a model is corrected; for no shifts an empty one."""
        return steered(self.model, LLAVA, shifts, alpha=0.1) if shifts else nullcontext()

    def prompt(self, arm: str) -> tuple[DynamicCache, Tensor]:
        """The cache after the prompt, and the first token [1, 1]."""
        cache = DynamicCache(config=self.model.config.get_text_config())
        with self.corrected(self.shifts(arm)):
            logits = self.model(
                **self.inputs([self.pictured_row]), **{cache_argument(): cache}, logits_to_keep=1
            ).logits
        return cache, logits[:, -1].argmax(dim=-1, keepdim=True)

    def timed(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds of the work, everything on the device done, and its result."""
        self._synchronise()
        started = time.perf_counter()
        result = work()
        self._synchronise()
        return time.perf_counter() - started, result

    def _synchronise(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)


def turns(arms: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """The arms in rotating order."""
    return [tuple(arms[(turn + place) % len(arms)] for place in range(len(arms))) for turn in range(count)]


def prompt_times(bench: Bench, repeats: int, warm_up: int) -> dict[str, list[float]]:
    """Seconds of each arm's prompt by turn; the first `warm_up` turns are not kept."""
    found: dict[str, list[float]] = {arm: [] for arm in PROMPTS}
    for order in turns(PROMPTS, warm_up + repeats):
        for arm in order:
            found[arm].append(bench.timed(partial(bench.prompt, arm))[0])
    return {arm: seconds[warm_up:] for arm, seconds in found.items()}


def decode_times(bench: Bench, tokens: int, warm_up: int) -> dict[str, list[float]]:
    """Seconds of each arm's decoding step by token; all arms decode side by side, each with its own cache."""
    decoder, head = (component(bench.model, path) for path in (LLAVA.language_model, LLAVA.lm_head))
    states = {arm: bench.prompt(arm) for arm in DECODING}
    shifts = {arm: bench.shifts(arm) for arm in DECODING}
    found: dict[str, list[float]] = {arm: [] for arm in DECODING}
    for order in turns(DECODING, warm_up + tokens):
        for arm in order:
            cache, token = states[arm]

            def step(cache: DynamicCache = cache, token: Tensor = token) -> Tensor:
                hidden = decoder(input_ids=token, **{cache_argument(): cache}, use_cache=True).last_hidden_state
                return head(hidden[:, -1]).argmax(dim=-1, keepdim=True)

            with bench.corrected(shifts[arm]):
                step_s, token = bench.timed(step)
            found[arm].append(step_s)
            states[arm] = cache, token
    return {arm: seconds[warm_up:] for arm, seconds in found.items()}


def figures(times: Mapping[str, Sequence[float]], what: str) -> dict[str, float]:
    """Median seconds of the plain arm, and of the others the median ratio to it, turn by turn."""
    plain = times["plain"]
    values = {f"plain_{what}_s": median(plain)}
    for arm in times:
        if arm == "plain":
            continue
        ratios = [ours / theirs for ours, theirs in zip(times[arm], plain, strict=True)]
        values[f"{arm}_over_plain_{what}_time"] = median(ratios)
    return values


@torch.inference_mode()
def measure(bench: Bench, *, tokens: int, prompts: int, warm_up: int) -> dict[str, float]:
    """All figures of one shape."""
    values = figures(decode_times(bench, tokens, warm_up), "decode")
    values |= figures(prompt_times(bench, prompts, max(1, warm_up // 4)), "prompt")
    return values | {"goal_dataset_over_plain_decode_time": GOAL}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="flat numbers as one JSON object")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--image-tokens", type=int, default=12, help="patches on a side: 12 are 144 tokens")
    parser.add_argument("--prefix", type=int, default=36, help="tokens before the picture")
    parser.add_argument("--words", type=int, default=24, help="tokens after the picture")
    parser.add_argument("--tokens", type=int, default=60, help="decoding steps that are timed")
    parser.add_argument("--prompts", type=int, default=8, help="prompts that are timed")
    parser.add_argument("--warm-up", type=int, default=8, help="steps before, and a quarter as many prompts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = llava_of_shape(arguments.width, arguments.layers, arguments.image_tokens)
    model.to(arguments.device, getattr(torch, arguments.dtype))
    bench = Bench(model, arguments.image_tokens, arguments.prefix, arguments.words)
    values = measure(bench, tokens=arguments.tokens, prompts=arguments.prompts, warm_up=arguments.warm_up)
    shape = {name: getattr(arguments, name) for name in ("width", "layers", "threads", "device", "dtype", "tokens")}
    shape["prompt_tokens"] = len(bench.pictured_row)
    if arguments.json:
        print(json.dumps({**shape, **{key: round(value, 5) for key, value in values.items()}}, indent=1))
        return
    print(", ".join(f"{name} {value}" for name, value in shape.items()))
    for key, value in values.items():
        print(f"{key:<40}{value:.4f}")


if __name__ == "__main__":
    main()
