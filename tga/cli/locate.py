"""tga-locate: where safety activates in a model, and what pictures do there.

Algorithm 1 runs first and leaves layers.json; then come the figures that are asked for, each as a picture and as data.
Prompts pass through in batches, and what is known of each is written as it goes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from retrieval_index.encoders import Encoder
from tga.alignment.located import LocatedLayers, write_located_layers
from tga.cli.build_index import EncoderChoice
from tga.cli.common import hydra_command, plain, prepare, start_run, write_summary
from tga.cli.locate_config import PICTURED, check_settings, read_asked, wanted_figures
from tga.cli.locate_job import Job
from tga.cli.locate_report import Values, band_values, report
from tga.cli.locate_source import check_source, has_pictures, load_subject
from tga.cli.locate_stages import (
    Located,
    draw_figure2,
    draw_figure3,
    draw_figure4,
    draw_figure5,
    locate,
)
from tga.cli.run_directory import run_directory
from tga.localization.windows import layer_windows
from tga.resources import peak_rss_mib
from tga.vlm.language_model import identify_language_model


@hydra_command("locate")
def main(config: DictConfig) -> Path:
    """Locate the layers, draw the figures; write layers.json, figures/, the rows behind them and summary.json."""
    started, values = time.perf_counter(), plain(config)
    check_settings(values["localization"])
    check_source(values)
    with run_directory(values["run_dir"]) as run_dir:
        return _locate(config, values, run_dir, started)


def _locate(config: DictConfig, values: Mapping[str, Any], run_dir: Path, started: float) -> Path:
    """What the command does in its directory."""
    settings, evaluation = values["localization"], values["evaluation"]
    prepare(config)
    figures = wanted_figures(settings, has_pictures(values))
    asked = read_asked(settings, evaluation, figures)
    subject = load_subject(values, list(HydraConfig.get().overrides.task))
    job = Job(subject, asked, settings, evaluation, run_dir)
    if {3, 5} & set(figures):
        layer_windows(job.layers, settings["window"], settings["stride"])  # refuses a window that does not fit
    encoder = _retriever(values) if 4 in figures else None
    start_run(config)
    found, summary = locate(job)
    write_located_layers(job.run_dir / "layers.json", _located(job, found))
    summary |= _draw(job, found, figures, encoder)
    summary |= {"model": subject.path, "variant": settings["variant"], "layers": " ".join(map(str, found.layers))}
    summary |= {"total_s": round(time.perf_counter() - started, 3), "peak_rss_mib": round(peak_rss_mib(), 1)}
    write_summary(job.run_dir, summary, config)
    skipped = [figure for figure in PICTURED if figure in settings["figures"] and figure not in figures]
    report(job.run_dir / "table.md", summary, found.layers, skipped)
    return job.run_dir


def _draw(job: Job, found: Located, figures: list[int], encoder: Encoder | None) -> Values:
    """The figures that are wanted, in order."""
    values: Values = {}
    if 2 in figures:
        values |= draw_figure2(job, found.band)
    if 3 in figures:
        values |= draw_figure3(job, found.band)
    if 4 in figures:
        values |= draw_figure4(job, found.band, encoder)
    if 5 in figures:
        values |= draw_figure5(job, found.band)
    return values


def _retriever(values: Mapping[str, Any]) -> Encoder | None:
    """The encoder of the caption index; None where none is named."""
    return EncoderChoice(**values["encoder"]).encoder if values["encoder"]["name"] is not None else None


def _located(job: Job, found: Located) -> LocatedLayers:
    """What layers.json says."""
    subject, settings = job.subject, job.settings
    return LocatedLayers(
        layers=found.layers,
        language_model=identify_language_model(subject.model, subject.family),
        found={
            "model": subject.path,
            "variant": settings["variant"],
            "layers_from": settings["layers_from"],
            "prompts": found.toxic.total,
            **band_values("", found.toxic),
            **(band_values("contrast_", found.contrasted) if found.benign is not None else {}),
            "activation_layers": {str(layer): count for layer, count in sorted(found.toxic.activated.items())},
        },
    )


if __name__ == "__main__":
    main()
