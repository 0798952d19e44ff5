"""Does an exported directory load as the model that was exported? Asked of plain transformers, in a fresh process.

Weights under names that the loader does not know stay random with no more than a report, and the answers are fluent;
so keys that are missing or unexpected, other token ids, and logits that differ are errors here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tga.errors import UserError
from tga.export import reload
from tga.vlm.modes import evaluating

TIMEOUT_S = 3600
# Largest difference of logits, as a share of the largest logit (or of 1), by dtype: what another order of additions
# makes, and less than another model would.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def verify_directory(directory: Path, model: Any, processor: Any, prompt: str | None) -> None:
    """Load `directory` in a fresh process, and compare its token ids and logits with those of `model`.

    Both are in memory for a while: twice the size of the model.

    Args:
        model: what was exported; it answers on the device where it is, the loaded one on the CPU.
        processor: as it was saved.
        prompt: the text beside the picture, for a processor without a chat template; else None.

    Raises:
        UserError: the directory cannot be loaded, keys are missing, unexpected or of other shapes, or token ids or
            logits differ.
    """
    with evaluating(model):
        ids, logits = reload.probe(model, processor, prompt)
    found = _loaded_again(directory, prompt, "eager" if model.config._attn_implementation == "eager" else "sdpa")
    if found["keys"]:
        raise _refused("its weights are incomplete, or their names are not those of the loader", found["keys"])
    if found["ids"] != ids:
        raise _refused("its processor makes other tokens of a question", f"{found['ids']} instead of {ids}")
    allowed = TOLERANCE.get(model.dtype, 1e-4) * max(1.0, float(logits.nan_to_num().abs().max()))
    same_shape = found["logits"].shape == logits.shape
    if not same_shape or not torch.allclose(found["logits"], logits, rtol=0, atol=allowed, equal_nan=True):
        differ = f"by {float((found['logits'] - logits).abs().max()):.3g}" if same_shape else "in number"
        raise _refused("it answers otherwise", f"logits that differ {differ}")


def _loaded_again(directory: Path, prompt: str | None, attention: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as room:
        answer = Path(room) / "answer.pt"
        asked = {"directory": str(directory), "prompt": prompt, "attention": attention, "to": str(answer)}
        # -P: the program's folder is not on the path, where its neighbours would hide modules of other packages.
        command = [sys.executable, "-P", str(reload.__file__), json.dumps(asked)]
        try:
            ended = subprocess.run(
                command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired as error:
            raise _refused("loading it took too long", f"{TIMEOUT_S} s") from error
        if ended.returncode < 0:
            raise _refused("the process was killed, as it is where memory is short", f"signal {-ended.returncode}")
        if ended.returncode:
            raise _refused("it cannot be loaded", (ended.stderr.strip().splitlines() or ["no message"])[-1])
        found: dict[str, Any] = torch.load(answer, weights_only=True)
        return found


def _refused(what: str, given: object) -> UserError:
    return UserError(
        f"The exported model was loaded again in a fresh process and is not kept: {what}",
        given=given,
        allowed="a directory that plain transformers loads completely, with the same token ids and logits",
        remedy="verify=false writes it without this check",
    )
