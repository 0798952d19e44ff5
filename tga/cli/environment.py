"""What tga runs in: packages, GPU, FAISS build, disk. Facts for people, problems with the command that mends them."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import torch
from huggingface_hub import constants
from packaging.requirements import Requirement

from tga.alignment.text_targets import human_size
from tga.cli.checks import Finding, nearest_existing
from tga.errors import UserError

DISTRIBUTION = "tga-vlm"
# Uploads of strangers to the package index.
MALICIOUS = {"lightning": ("2.6.2", "2.6.3")}
FAISS_BUILDS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12")
OPTIONAL = {
    "peft": "LoRA", "deepspeed": "training=deepspeed", "flash_attn": "flash attention", "liger_kernel": "fused kernels",
    "ray": "engine=ray", "wandb": "training.loggers=[wandb]", "tensorboard": "training.loggers=[tensorboard]",
}  # fmt: skip
MIN_SHARED_MEMORY = 2**30


def environment() -> Iterator[Finding]:
    """Everything, in the order in which it is printed."""
    yield Finding("python", sys.version.split()[0])
    yield from packages(installed())
    yield from faiss_build(installed())
    yield from gpus()
    yield from disk()


def installed() -> dict[str, str]:
    """Version of each installed distribution, by its name in lower case."""
    found = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found[name.lower().replace("_", "-")] = distribution.version
    return found


def packages(versions: Mapping[str, str]) -> Iterator[Finding]:
    """The packages that tga needs, against the versions it takes; then the optional ones."""
    for text in metadata.requires(DISTRIBUTION) or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = requirement.name.lower().replace("_", "-")
        version, command = versions.get(name), f"pip install '{requirement.name}{requirement.specifier}'"
        problem = None
        if name in FAISS_BUILDS and version is None and any(versions.get(build) for build in FAISS_BUILDS):
            continue  # another build of it is there
        if version is None:
            problem = UserError(f"{name} is not installed", allowed=str(requirement.specifier), remedy=command)
        elif version in MALICIOUS.get(name, ()):
            problem = UserError(
                f"This version of {name} was a malicious upload",
                given=version,
                remedy=f"pip uninstall -y {name}, change the passwords and keys of this machine, then {command}",
            )
        elif not requirement.specifier.contains(version, prereleases=True):
            problem = UserError(
                f"{name} is of a version that tga does not take",
                given=version,
                allowed=str(requirement.specifier),
                remedy=command,
            )
        yield Finding(name, version or "missing", problem=problem)
    there = [f"{name} ({use})" for name, use in OPTIONAL.items() if importlib.util.find_spec(name) is not None]
    yield Finding("optional packages", ", ".join(there) or "none")


def faiss_build(versions: Mapping[str, str]) -> Iterator[Finding]:
    """Which build of FAISS there is: two overwrite each other's files, and what is left is neither."""
    builds = {name: versions[name] for name in FAISS_BUILDS if name in versions}
    described = ", ".join(f"{name} {version}" for name, version in builds.items()) or "none"
    if len(builds) > 1:
        kept = next(name for name in builds if name != "faiss-cpu")
        yield Finding(
            "FAISS build",
            described,
            problem=UserError(
                "Two builds of FAISS are installed, and they overwrite each other's files",
                given=described,
                remedy=f"pip uninstall -y {' '.join(builds)} && pip install {kept} (or faiss-cpu)",
            ),
        )
        return
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # it tells which instruction sets it tries
    try:
        import faiss
    except ImportError as error:
        problem = UserError(f"FAISS cannot be imported ({error})", given=described, remedy="pip install faiss-cpu")
        yield Finding("FAISS build", described, problem=problem)
        return
    count = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    yield Finding("FAISS build", f"{described}, sees {count} GPUs")


def gpus() -> Iterator[Finding]:
    """The GPUs that torch sees."""
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(number)
            capability = f"compute {found.major}.{found.minor}"
            bf16 = "bfloat16" if found.major >= 8 else "no bfloat16 in hardware"
            described = f"{found.name}, {human_size(found.total_memory)}, {capability}, {bf16}"
            yield Finding(f"GPU {number}", f"{described}, CUDA {torch.version.cuda}")
        return
    warning = None
    if shutil.which("nvidia-smi"):
        warning = (
            "This machine has NVIDIA's driver, and torch sees no GPU: torch is built for another CUDA, "
            "or CUDA_VISIBLE_DEVICES is empty"
        )
    yield Finding("GPU", f"none that torch {torch.__version__} sees; {os.cpu_count()} CPU cores", warning=warning)


def disk() -> Iterator[Finding]:
    """Free room where runs are written, where the hub's files are kept, and in the memory that data workers share."""
    for name, path in (("working directory", Path.cwd()), ("hub cache", Path(constants.HF_HUB_CACHE))):
        free = shutil.disk_usage(nearest_existing(path)).free
        yield Finding(f"disk of the {name}", f"{human_size(free)} free at {path}")
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        warning = None
        if size < MIN_SHARED_MEMORY:
            warning = f"/dev/shm has {human_size(size)}, little for data workers (docker run --shm-size=8g)"
        yield Finding("shared memory", human_size(size), warning=warning)
    if constants.HF_HUB_OFFLINE:
        yield Finding("hub", "offline (HF_HUB_OFFLINE): names of the hub work from the cache alone")
