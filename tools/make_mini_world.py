"""Make the LLM and the CLIP of the mini world and pack them into `tga/mini/assets/weights`.

    python -m tools.make_mini_world                       # both, with the seeds that the package ships
    python -m tools.make_mini_world --only llm --llm-seed 0 --out /tmp/world0   # another LLM of the same recipe, for
                                                          # tga-train +experiment=mini model.llm=/tmp/world0/llm
    python -m tools.make_mini_world --only llm --llm-steps 20 --angle-steps 5 --align-steps 5 --out /tmp/q

Everything is seeded; the figures measured at the end are printed and stored beside the hashes in weights.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tga.files import read_object, write_json
from tga.mini.tokenizer import llm_tokenizer
from tga.mini.weights import WEIGHTS, pack, sha256
from tools.mini_world import clip, llm


def make_llm(out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the LLM and write llm.safetensors and llm_config.json; returns its figures.

    Outside of the package also llm/, a directory for `tga-train model.llm=`.
    """
    started = time.monotonic()
    steps = {
        "pretrain_steps": arguments.llm_steps,
        "angle_steps": arguments.angle_steps,
        "align_steps": arguments.align_steps,
    }
    model, soft_chat = llm.train(arguments.llm_seed, **steps, dtype=getattr(torch, arguments.dtype))
    figures = {f"llm_{key}": value for key, value in llm.probe(model, seed=arguments.llm_seed + 10_000).items()}
    pack(model.state_dict(), out / "llm.safetensors")
    if arguments.out != WEIGHTS:
        model.save_pretrained(out / "llm")
        llm_tokenizer().save_pretrained(out / "llm")
    (out / "llm_config.json").write_text(json.dumps(llm.config_fields(), indent=1) + "\n")
    about = {"seed": arguments.llm_seed, "soft_chat": soft_chat, "dtype": arguments.dtype, "threads": arguments.threads}
    return (
        figures
        | {f"llm_{key}": value for key, value in about.items()}
        | {"llm_train_s": round(time.monotonic() - started)}
    )


def make_clip(out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the CLIP and write clip.safetensors and open_clip_config.json; returns its figures."""
    started = time.monotonic()
    model = clip.train(arguments.clip_seed, steps=arguments.clip_steps, dtype=getattr(torch, arguments.dtype))
    figures = {"seed": arguments.clip_seed, "dtype": arguments.dtype, "threads": arguments.threads}
    figures = {f"clip_{key}": value for key, value in figures.items()}
    figures["clip_train_s"] = round(time.monotonic() - started)
    pack(model.state_dict(), out / "clip.safetensors")
    (out / "open_clip_config.json").write_text(json.dumps(clip.directory_config(), indent=1) + "\n")
    return figures | {"clip_retrieval_at_1": clip.retrieval_at_1(model, seed=arguments.clip_seed + 10_000)}


def main() -> None:
    """Train what is asked for, measure it, and put it in place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="the folder of the packed weights")
    parser.add_argument("--llm-seed", type=int, default=1)
    parser.add_argument("--clip-seed", type=int, default=0)
    parser.add_argument("--only", choices=("llm", "clip"), help="make one of the two and keep the other")
    parser.add_argument("--llm-steps", type=int, default=llm.PRETRAIN_STEPS)
    parser.add_argument("--angle-steps", type=int, default=llm.ANGLE_STEPS)
    parser.add_argument("--align-steps", type=int, default=llm.ALIGN_STEPS)
    parser.add_argument("--clip-steps", type=int, default=clip.STEPS)
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="float32",
        help="of the matrix products; bfloat16 is faster on a CPU with instructions for it, 40 times slower on others",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="results depend on it slightly")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    about = arguments.out / "weights.json"
    known = read_object(about)
    made_here = {"sha256", "figures"} <= known.keys()
    if (not made_here and any(arguments.out.iterdir())) or (arguments.out / "llm").exists():
        parser.error(f"{arguments.out} holds something else, or an LLM of before: name another --out")
    figures = known.get("figures", {})
    with tempfile.TemporaryDirectory(dir=arguments.out) as name:
        made = Path(name)
        if arguments.only != "llm":
            figures |= make_clip(made, arguments)
        if arguments.only != "clip":
            figures |= make_llm(made, arguments)
        for path in made.iterdir():
            shutil.move(path, arguments.out / path.name)
    hashes = {path.name: sha256(path) for path in sorted(arguments.out.glob("*.safetensors"))}
    write_json(about, {"sha256": hashes, "figures": figures})
    print(json.dumps(figures, indent=1))
    print(f"packed into {arguments.out}")


if __name__ == "__main__":
    main()
