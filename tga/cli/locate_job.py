"""What the stages of tga-locate work with: the loaded model, its prompts in batches, its answers, and files of rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tga.cli.locate_config import Asked, toxic_words
from tga.cli.locate_source import Subject
from tga.evaluation.generate import end_token_ids, greedy_tokens
from tga.evaluation.prompts import PromptBatch, prompt_batch, prompt_rows
from tga.evaluation.questions import Question
from tga.files import atomic_path
from tga.localization.prompts import TextBatch, text_batches, text_prompt
from tga.localization.rows import Rows
from tga.localization.windows import Answer, AskedBatch
from tga.vlm.families import image_token_id, num_layers


@dataclass(frozen=True)
class Job:
    """A loaded model, the questions, the config's plain values of localization and evaluation, and where to write."""

    subject: Subject
    asked: Asked
    settings: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    run_dir: Path

    @property
    def figures(self) -> Path:
        """The folder of the figures."""
        return self.run_dir / "figures"

    @property
    def layers(self) -> int:
        """L, the number of decoder layers."""
        return num_layers(self.subject.model, self.subject.family)

    def templates(self) -> dict[str, str]:
        """The evaluation's templates."""
        return {key: self.evaluation[key] for key in ("chat_template", "plain_template")}

    def batches(self, questions: Sequence[Question], label: str | None = None) -> Iterator[TextBatch]:
        """Text questions as batches, made as they are taken; with a label there is a progress bar."""
        templates = {"chat": self.evaluation["chat_template"], "plain": self.evaluation["plain_template"]}
        subject = self.subject
        prompts = (
            text_prompt(
                subject.tokenizer,
                question.id,
                question.prompt,
                toxic_words(question, self.settings),
                template=templates[question.format],
                image_token=subject.image_token,
            )
            for question in tqdm(questions, desc=label, unit="prompt", disable=label is None)
        )
        size = self.evaluation["batch_size"]
        return text_batches(prompts, batch_size=size, tokenizer=subject.tokenizer, device=subject.model.device)


def greedy_answers(job: Job, inputs: PromptBatch, rows: Rows) -> list[str]:
    """Greedy answers, as the evaluation gives them."""
    subject = job.subject
    ends = end_token_ids(subject.model, subject)
    most = job.evaluation["max_new_tokens"]
    tokens = greedy_tokens(subject.model, subject.family, inputs, end_ids=ends, max_new_tokens=most, steered=rows)
    return [answer.strip() for answer in subject.tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def pictured_batches(job: Job, questions: Sequence[Question]) -> Iterator[AskedBatch]:
    """Questions with pictures in batches; the image tokens are what is touched."""
    subject, size = job.subject, job.evaluation["batch_size"]
    token = image_token_id(subject.model, subject.family)
    for start in range(0, len(questions), size):
        chunk = questions[start : start + size]
        rows = prompt_rows(subject.model, subject.processor, subject.family, chunk, **job.templates())
        pictures = [question.image for question in chunk if question.image is not None]
        batch = prompt_batch(subject.model, subject.processor, subject.family, rows, pictures, padding_side="left")
        yield AskedBatch(tuple(question.id for question in chunk), batch, batch.input_ids == token)


@contextmanager
def written_rows(path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A JSONL file that is written row by row and takes its name when it is complete."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield lambda row: print(json.dumps(row, ensure_ascii=False), file=file)


@contextmanager
def written_answers(job: Job, figure: int, total: int, label: str) -> Iterator[Callable[[Answer], None]]:
    """What takes the answers behind a figure: into `figure<N>_answers.jsonl`, with a progress bar."""
    with (
        written_rows(job.run_dir / f"figure{figure}_answers.jsonl") as write,
        tqdm(total=total, desc=f"Figure {figure}: {label}", unit="answer") as bar,
    ):

        def tell(answer: Answer) -> None:
            write(vars(answer))
            bar.update()

        yield tell
