"""The configs of the group alignment, composed: what each method is, against the presets in code."""

from __future__ import annotations

from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from tga.alignment.regap import ReGap
from tga.alignment.tga import TGA, located, paper, released
from tga.cli.train_config import build_objectives

LAYERS = 32
ALL = tuple(range(1, LAYERS + 1))
LOCATED = [10, 11, 12, 13, 14, 15, 16, 17, 18]
COMMON = {
    "layers": "all", "pair_weight": 1.0, "rank_weight": 1.0, "reduction": "mean", "form": "log",
    "pair_schedule": "constant", "rank_schedule": "constant", "retrieved": "loss", "centred": False,
    "retrieved_gradient": False, "target": "caption", "temperature": 0.1, "warmup": 0, "targets": "online",
    "targets_dtype": "float32", "text_pooling": "mean", "sif_a": 0.001,
}  # fmt: skip
FADING = {"pair_schedule": "linear_decay", "rank_schedule": "linear_decay"}
OWN: dict[str, dict[str, Any]] = {
    "tga": {**FADING, "pair_weight": 1.5, "rank_weight": 1.5, "warmup": 0.1, "text_pooling": "sif"},
    "tga_centred": {**FADING, "pair_weight": 4.0, "rank_weight": 2.0, "centred": True},
    "tga_centred_sif": {**FADING, "pair_weight": 2.0, "rank_weight": 1.0, "centred": True, "text_pooling": "sif"},
    "tga_contrastive": {**FADING, "pair_weight": 1.0, "rank_weight": 1.5, "form": "contrastive"},
    "tga_fixed_layers": {},
    "tga_located": {"layers": LOCATED, "layers_file": None},
    "tga_paper": {"reduction": "sum", "retrieved": "prompt"},
    "tga_released": {
        "layers": LOCATED, "pair_weight": 0.25, "rank_weight": 0.1, "form": "exp", "pair_schedule": "linear_decay",
        "rank_schedule": "quadratic_decay", "retrieved": "prompt",
    },
}  # fmt: skip
# What a method cannot do without.
GIVEN = {"tga_located": f"alignment.layers={LOCATED}"}
PRESETS = {
    "tga": TGA(ALL, pair_weight=1.5, rank_weight=1.5, warmup=0.1, **FADING),
    "tga_centred": TGA(ALL, pair_weight=4.0, rank_weight=2.0, **FADING),
    "tga_centred_sif": TGA(ALL, pair_weight=2.0, rank_weight=1.0, **FADING),
    "tga_contrastive": TGA(ALL, pair_weight=1.0, rank_weight=1.5, form="contrastive", **FADING),
    "tga_fixed_layers": TGA(ALL),
    "tga_located": located(LOCATED),
    "tga_paper": paper(LAYERS),
    "tga_released": released(),
}


def alignment(method: str, *overrides: str) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="tga.conf", version_base="1.3"):
        given = [GIVEN[method]] if method in GIVEN else []
        config = compose("train", overrides=[f"alignment={method}", *given, *overrides])
    values = OmegaConf.to_container(config.alignment, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def objective(values: dict[str, Any], name: str = "tga") -> Any:
    return build_objectives({"objectives": {name: values["objectives"][name]}}, LAYERS)[0]


@pytest.mark.parametrize("method", OWN)
def test_a_method_is_what_its_name_says(method: str) -> None:
    values = alignment(method)
    made = objective(values)
    del values["objectives"]
    assert values == {"name": method, **COMMON, **OWN[method]}
    assert vars(made) == vars(PRESETS[method])


def test_located_layers_are_the_default_of_their_method() -> None:
    values = alignment("tga_located", "alignment.layers=located", "alignment.layers_file=some/layers.json")
    assert values["layers"] == values["objectives"]["tga"]["layers"] == "located"
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="tga.conf", version_base="1.3"):
        assert compose("train", overrides=["alignment=tga_located"]).alignment.layers == "located"


FIXED = {
    "llava7b": LOCATED,
    "sharegpt4v_7b": LOCATED,
    "llava_next_mistral7b": LOCATED,
    "instructblip_7b": LOCATED,
    "llava13b": list(range(13, 23)),
    "qwen2_5_vl_7b": list(range(9, 17)),
}


@pytest.mark.parametrize("experiment", FIXED)
def test_an_experiment_whose_layers_nobody_located_does_not_say_so(experiment: str) -> None:
    def method(*overrides: str) -> Any:
        GlobalHydra.instance().clear()
        with initialize_config_module(config_module="tga.conf", version_base="1.3"):
            return compose("train", overrides=[f"+experiment={experiment}", *overrides]).alignment

    own = method()
    assert (own.name, list(own.layers)) == ("tga_fixed_layers", FIXED[experiment])
    assert list(own.objectives.tga.layers) == FIXED[experiment]
    made = objective(OmegaConf.to_container(own, resolve=True))
    assert vars(made) == vars(located(FIXED[experiment]))  # the loss is the one it was
    # What tga-locate found takes the place of the numbers, under its own name.
    found = method("alignment=tga_located", "alignment.layers_file=layers.json")
    assert (found.name, found.layers, found.layers_file) == ("tga_located", "located", "layers.json")
    assert method("alignment=tga_paper").layers == "all"


def test_an_override_reaches_the_objective() -> None:
    made = objective(alignment("tga_released", "alignment.layers=[0,3]", "alignment.pair_weight=2"))
    assert made.layers == (0, 3) and made.pair_weight == 2.0 and made.rank_weight == 0.1


@pytest.mark.parametrize("method", OWN)
def test_the_gradient_into_the_retrieved_text_is_a_setting_of_every_method(method: str) -> None:
    assert not objective(alignment(method)).retrieved_gradient
    assert objective(alignment(method, "alignment.retrieved_gradient=true")).retrieved_gradient


def test_regap_alone_and_with_centred_tga() -> None:
    values = alignment("regap")
    made = objective(values, "regap")
    assert vars(made) == vars(ReGap()) and (values["retrieved"], values["centred"]) == ("none", False)
    both = alignment("tga_regap", "alignment.regap.weight=0.5", "alignment.pair_weight=7")
    assert {key: both[key] for key in OWN["tga_centred"]} == {**OWN["tga_centred"], "pair_weight": 7}
    assert both["name"] == "tga_regap" and both["retrieved"] == "loss" and list(both["objectives"]) == ["regap", "tga"]
    assert objective(both, "regap").alpha == 0.5
    assert objective(both).pair_weight == 7


def test_the_baseline_has_no_objective() -> None:
    assert alignment("baseline") == {"name": "baseline", "retrieved": "none", "centred": False, "objectives": {}}
