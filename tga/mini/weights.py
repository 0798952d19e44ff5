"""The packaged weights of the mini world: checked against their hashes, written out as ordinary directories.

They are made by `python -m tools.make_mini_world` and packed in bfloat16 to keep the package small.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tga.errors import UserError
from tga.mini.scenes import ASSETS
from tga.mini.tokenizer import clip_tokenizer, llm_tokenizer

WEIGHTS = ASSETS / "weights"


def sha256(path: Path) -> str:
    """The hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check(name: str) -> Path:
    """The packaged file `name`, its hash compared with weights.json.

    Raises:
        UserError: the file is not the one that was packaged.
    """
    path = WEIGHTS / name
    expected = json.loads((WEIGHTS / "weights.json").read_text())["sha256"][name]
    given = sha256(path)
    if given != expected:
        raise UserError(
            f"the packaged weights {path} are damaged",
            given=f"sha256 {given}",
            allowed=f"sha256 {expected}",
            remedy="install the package again, or remake them with `python -m tools.make_mini_world`",
        )
    return path


def pack(state: dict[str, torch.Tensor], path: Path) -> None:
    """Save a state dict in bfloat16."""
    save_file({k: v.detach().to(torch.bfloat16).contiguous() for k, v in state.items()}, path)


def load_llm() -> LlamaForCausalLM:
    """The packaged LLM, float32, in eval mode."""
    config = LlamaConfig(**json.loads((WEIGHTS / "llm_config.json").read_text()))
    model = LlamaForCausalLM(config)
    state = {k: v.to(torch.float32) for k, v in load_file(check("llm.safetensors")).items()}
    model.load_state_dict(state, strict=True)
    return model.eval()


def restore_llm(directory: Path) -> None:
    """Write the LLM as an ordinary transformers directory (float32), with its tokenizer and chat template."""
    load_llm().save_pretrained(directory)
    llm_tokenizer().save_pretrained(directory)


def restore_retriever(directory: Path) -> None:
    """Write the CLIP as an open_clip local directory (float32)."""
    directory.mkdir(parents=True, exist_ok=True)
    state = {k: v.to(torch.float32) for k, v in load_file(check("clip.safetensors")).items()}
    save_file(state, directory / "open_clip_model.safetensors")
    shutil.copyfile(WEIGHTS / "open_clip_config.json", directory / "open_clip_config.json")
    clip_tokenizer().save_pretrained(directory)
