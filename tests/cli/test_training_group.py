"""The group `training`: every option is a set of settings; processes that nobody launched are refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from tga.cli.train import main
from tga.cli.train_config import lora_settings, train_settings
from tga.errors import UserError

OPTIONS = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "conf" / "training").glob("*.yaml"))


def composed(*overrides: str) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="tga.conf", version_base="1.3"):
        config = compose("train", overrides=list(overrides))
    values = OmegaConf.to_container(config.training, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def test_every_option_is_a_set_of_settings() -> None:
    assert {"default", "ddp", "fsdp2", "deepspeed"} <= set(OPTIONS)
    for option in OPTIONS:
        settings = train_settings(composed(f"training={option}", "training.batch_size=3"))
        assert settings.batch_size == 3
        assert settings.strategy == ("single" if option == "default" else option)


def test_an_experiment_keeps_its_numbers_under_another_option() -> None:
    settings = train_settings(composed("+experiment=llava7b", "training=fsdp2"))
    assert (settings.strategy, settings.learning_rate, settings.precision) == ("fsdp2", 1e-3, "bf16-mixed")
    assert settings.gradient_norm_every == 0


def test_the_keys_of_lora_are_checked() -> None:
    assert lora_settings(None) is None
    found = lora_settings({"rank": 4})
    assert found is not None and (found.rank, found.alpha) == (4, 256.0)
    with pytest.raises(UserError, match="model.lora does not have the keys"):
        lora_settings({"width": 4})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["training=ddp"], "torchrun --nproc-per-node"),
        (["training=fsdp2"], "torchrun --nproc-per-node"),
        (["-m", "training=ddp", "seed=0,1"], "one torchrun for each run"),
    ],
)
def test_processes_that_nobody_launched(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is loaded: none of the paths exists."""
    monkeypatch.chdir(tmp_path)
    named = ["model.llm=no", "model.vision_tower=no", "data.json=no", "data.image_root=no", "alignment=baseline"]
    monkeypatch.setattr(sys, "argv", ["tga-train", *arguments, *named, f"hydra.sweep.dir={tmp_path}/sweep"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("Error: ") and said in message
    assert not (tmp_path / "outputs").exists()
