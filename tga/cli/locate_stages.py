"""The stages of tga-locate: Algorithm 1 and the figures. Each draws, writes its data, returns keys of the summary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from retrieval_index.encoders import Encoder
from tga.cli.locate_job import Job, greedy_answers, pictured_batches, written_answers, written_rows
from tga.cli.locate_report import (
    Values,
    activation_rows,
    activation_values,
    cosine_rows,
    find_band,
    knockout_values,
    window_rows,
    window_values,
)
from tga.evaluation.cosines import derangement, pair_cosines
from tga.evaluation.judges import is_refusal
from tga.evaluation.prompts import PromptBatch
from tga.evaluation.questions import Question
from tga.localization.activation import LayerCounts, Trace, traces
from tga.localization.addition import added_states, mean_span_states
from tga.localization.attention import attention_shares
from tga.localization.figures import draw_activation, draw_attention, draw_cosines, draw_windows
from tga.localization.knockout import attention_knockout
from tga.localization.sorry import sorry_tokens
from tga.localization.windows import PLAIN, AskedBatch, Layers, inside_outside, layer_windows, refusals, window_name


@dataclass(frozen=True)
class Located:
    """What Algorithm 1 found: the counts, and the layers of layers.json (none where no prompt activates)."""

    toxic: LayerCounts
    contrasted: LayerCounts
    benign: LayerCounts | None
    band: tuple[int, int] | None

    @property
    def layers(self) -> tuple[int, ...]:
        """The located layers, in rising order."""
        return () if self.band is None else tuple(range(self.band[0], self.band[1] + 1))


def locate(job: Job) -> tuple[Located, Values]:
    """Algorithm 1 on benign and on toxic prompts; activation.jsonl has a row per prompt, written as it goes."""
    settings, subject = job.settings, job.subject
    sorry = sorry_tokens(subject.tokenizer, settings["openings"], settings["ordinary_openings"])
    toxic, contrasted = LayerCounts(job.layers), LayerCounts(job.layers)
    benign = LayerCounts(job.layers) if job.asked.text_benign else None

    def seen(questions: Sequence[Question], label: str) -> Iterator[Trace]:
        found = job.batches(questions, label)
        return traces(subject.model, subject.family, found, sorry, variant=settings["variant"])

    with written_rows(job.run_dir / "activation.jsonl") as write:
        ignored: tuple[int, ...] = ()
        if benign is not None:
            for trace in seen(job.asked.text_benign, "benign prompts"):
                benign.add(trace)
                write({"set": "benign", **_trace_row(trace)})
            ignored = benign.frequent(settings["contrast_share"])
        for trace in seen(job.asked.text_toxic, "toxic prompts"):
            toxic.add(trace)
            contrasted.add(trace, ignored)
            write({"set": "toxic", **_trace_row(trace), "contrast_layer": trace.activation(ignored)})
    chosen = contrasted if settings["layers_from"].startswith("contrast") else toxic
    found = Located(toxic, contrasted, benign, find_band(chosen, settings["layers_from"]))
    draw_activation(job.figures, activation_rows(toxic, benign), found.band)
    return found, activation_values(toxic, contrasted, benign) | {"sorry_tokens": len(sorry)}


def draw_figure2(job: Job, band: tuple[int, int] | None) -> Values:
    """Attention from the last position to the toxic words: mean and spread over prompts by layer."""
    total, squares = torch.zeros(job.layers, dtype=torch.float64), torch.zeros(job.layers, dtype=torch.float64)
    even, count = 0.0, 0
    subject = job.subject
    for batch, shares, even_shares in attention_shares(
        subject.model, subject.family, job.batches(job.asked.text_toxic, "Figure 2: attention")
    ):
        total += shares.double().sum(dim=1)
        squares += shares.double().square().sum(dim=1)
        even += float(even_shares.sum())
        count += len(batch.ids)
    mean = total / count
    spread = (squares / count - mean.square()).clamp(min=0).sqrt()
    rows = [
        {"layer": layer, "mean": m, "std": s, "even": even / count, "n": count}
        for layer, (m, s) in enumerate(zip(mean.tolist(), spread.tolist(), strict=True), start=1)
    ]
    draw_attention(job.figures, rows, band)
    values: Values = {f"attention_share_layer_{row['layer']}": row["mean"] for row in rows}
    return values | {"attention_share_even": even / count}


def draw_figure3(job: Job, band: tuple[int, int] | None) -> Values:
    """DSR of toxic text with the flow from the toxic words blocked in windows, in the band, outside it, everywhere."""
    subject, spans = job.subject, _windows(job)
    conditions = _conditions(spans, band)
    if band is not None:
        outside = tuple(layer for layer in range(1, job.layers + 1) if not band[0] <= layer <= band[1])
        conditions |= {"outside_band": outside} if outside else {}
    conditions["all"] = tuple(range(1, job.layers + 1))
    batches = (
        AskedBatch(batch.ids, PromptBatch(batch.input_ids, batch.attention_mask, None), batch.toxic)
        for batch in job.batches(job.asked.text_toxic)
    )
    with written_answers(job, 3, len(job.asked.text_toxic) * len(conditions), "knockout") as tell:
        tallies = refusals(
            batches,
            conditions,
            intervene=lambda layers, places: attention_knockout(subject.model, subject.family, layers, places),
            generate=lambda inputs, rows: greedy_answers(job, inputs, rows),
            judge=is_refusal,
            on_answer=tell,
        )
    rows = window_rows(tallies, spans)
    title = "Toxic words blocked in windows of layers: text DSR"
    draw_windows(job.figures, "figure3", rows, band, title=title, plain="nothing blocked")
    values = window_values("text_dsr", "dsr_blocked", rows)
    if band is not None:
        by_window = {window: tallies[window_name(window)] for window in spans}
        values |= knockout_values(inside_outside(tallies[PLAIN], by_window, band))
    return values


def draw_figure4(job: Job, band: tuple[int, int] | None, encoder: Encoder | None) -> Values:
    """Cosine of pictures and their captions by layer, with the retriever's own as a reference."""
    subject, pairs = job.subject, job.asked.pairs
    size, seed = job.evaluation["batch_size"], job.evaluation["seed"]
    cosines = pair_cosines(
        subject.model,
        subject.processor,
        subject.family,
        pairs,
        layers="all",
        batch_size=size,
        seed=seed,
        **job.templates(),
    )
    retriever = None
    if encoder is not None and encoder.encodes_images:
        captions = [pair.caption or "" for pair in pairs]
        pictures = [pair.image for pair in pairs if pair.image is not None]
        image = torch.from_numpy(encoder.encode_images(pictures, batch_size=size))
        text = torch.from_numpy(encoder.encode_texts(captions, batch_size=size))
        wrong = text[derangement(captions, seed)]
        retriever = {
            "matched": float((image * text).sum(dim=1).mean()),
            "mismatched": float((image * wrong).sum(dim=1).mean()),
        }
    draw_cosines(job.figures, cosine_rows(cosines, job.layers), band, retriever)
    values: Values = {f"cosine_{key}": value for key, value in cosines.items()}
    return values | {f"retriever_cosine_{kind}": value for kind, value in (retriever or {}).items()}


def draw_figure5(job: Job, band: tuple[int, int] | None) -> Values:
    """Refusals of pictures with the mean state of the toxic words added to the image tokens in windows.

    Harmless pictures beside the toxic ones: what makes both refused has not told them apart.
    """
    subject, spans = job.subject, _windows(job)
    everywhere = range(1, job.layers + 1)
    texts = job.batches(job.asked.text_toxic, "Figure 5: mean text state")
    means = mean_span_states(subject.model, subject.family, texts, everywhere)
    added = {layer: job.settings["added_scale"] * state for layer, state in means.items()}
    conditions = _conditions(spans, band)
    sets = {"toxic": job.asked.image_toxic, "benign": job.asked.image_benign}
    found = {}
    with written_answers(job, 5, sum(map(len, sets.values())) * len(conditions), "added states") as tell:
        for name, questions in sets.items():
            found[name] = refusals(
                pictured_batches(job, questions),
                conditions,
                intervene=lambda layers, places: added_states(
                    subject.model, subject.family, {layer: added[layer] for layer in layers}, places
                ),
                generate=lambda inputs, rows: greedy_answers(job, inputs, rows),
                judge=is_refusal,
                on_answer=tell,
            )
    rows = window_rows(found["toxic"], spans)
    benign = window_rows(found["benign"], spans) if sets["benign"] else []
    title = "Mean text state added to the image tokens in windows of layers"
    draw_windows(job.figures, "figure5", rows, band, title=title, plain="nothing added", benign=benign)
    values = window_values("image_dsr", "dsr_added", rows) | window_values("over_refusal", "over_refusal_added", benign)
    return values | {f"added_norm_layer_{layer}": float(state.norm()) for layer, state in added.items()}


def _windows(job: Job) -> list[tuple[int, int]]:
    return layer_windows(job.layers, job.settings["window"], job.settings["stride"])


def _conditions(spans: Sequence[tuple[int, int]], band: tuple[int, int] | None) -> dict[str, Layers]:
    """The untouched model, each window, and the band where there is one."""
    conditions: dict[str, Layers] = {PLAIN: ()}
    conditions |= {window_name(span): tuple(range(span[0], span[1] + 1)) for span in spans}
    if band is not None:
        conditions["band"] = tuple(range(band[0], band[1] + 1))
    return conditions


def _trace_row(trace: Trace) -> dict[str, Any]:
    return {
        "id": trace.id,
        "layer": trace.activation(),
        "layers": list(trace.layers),
        "opens_with_sorry": trace.opens,
    }
