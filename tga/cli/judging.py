"""The judge model of `tga-evaluate`: looked at before anything is asked, loaded when the others are out of memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tga.errors import UserError
from tga.evaluation.kept_answers import KeptAnswers
from tga.evaluation.metrics import Metric, judged_by_model
from tga.evaluation.model_judge import SET_JUDGE, JudgeForm, Verdict, check_words, verdicts
from tga.evaluation.models import check_models, load_judge, model_stamp
from tga.terminal import say
from tga.vlm.parts import load_tokenizer

LITTLE_MASS = 0.1  # below it, the judge would mostly have said something else than either word


def judge_form(settings: Mapping[str, Any], metrics: Mapping[str, Metric]) -> JudgeForm | None:
    """How the judge is asked; None where no metric needs one. The tokenizer is loaded, and tried, the model is not.

    Raises:
        UserError: no judge, one that is not there, or one that cannot be asked so.
    """
    needing = judged_by_model(metrics)
    if not needing:
        return None
    if settings["path"] is None:
        problem = "A metric is judged by a model, and none is named"
        raise UserError(problem, given=", ".join(needing), remedy=SET_JUDGE)
    check_models({"judge": str(settings["path"])}, remedy=SET_JUDGE)
    # A command line has no sign for a new line.
    words = {key: settings[key] and settings[key].replace("\\n", "\n") for key in ("unsafe", "safe")}
    form = JudgeForm(form=settings["form"], template=settings["template"], **words)
    check_words(form, load_tokenizer(str(settings["path"]), remedy=SET_JUDGE))
    return form


def judge_pairs(
    settings: Mapping[str, Any],
    form: JudgeForm,
    loading: Mapping[str, str],
    kept_file: Path,
    pairs: Sequence[tuple[str, str]],
) -> list[Verdict]:
    """The verdicts on (request, answer); those of an evaluation that was stopped are taken from `kept_file`."""
    path = str(settings["path"])
    model, tokenizer = load_judge(path, dtype=loading["dtype"], device=loading["device"], remedy=SET_JUDGE)
    kept = KeptAnswers(kept_file, {"judge": path, "stamp": model_stamp(path), "form": vars(form), **loading})
    found = verdicts(model, tokenizer, form, pairs, batch_size=settings["batch_size"], kept=kept.of(list(pairs)))
    mass = median(verdict.mass for verdict in found)
    if mass < LITTLE_MASS:
        say(
            f"Warning: the judge would rarely have said {form.words[0]!r} or {form.words[1]!r} (median probability "
            f"{mass:.2g}); its verdicts may mean nothing. Look how its answers begin, and set "
            f"evaluation.judge_model.form (now {form.form}), evaluation.judge_model.unsafe and "
            "evaluation.judge_model.safe."
        )
    return found
