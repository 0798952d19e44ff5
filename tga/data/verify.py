"""Look at every record and every picture of a data set once, before a training does so for hours.

What makes a record useless goes into a bad list: structure, ids and captions are judged as the loader judges them
(`tga.data.record`), and every picture is decoded as a whole. Pictures are shared out to processes; results are kept in
a progress file beside the bad list, so that a killed verification goes on where it was.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from retrieval_index.picture_files import opened, reason, to_rgb
from tga.data.loading import judged
from tga.data.picture import Picture, encoded, identity
from tga.data.record import MISSING, OVERSIZED, TRUNCATED, UNREADABLE, Problem, Record, Source, empty_caption
from tga.errors import UserError
from tga.files import atomic_path

MAX_PIXELS = 89_478_485  # Pillow's own bound: 256 MiB of RGB
CHUNK = 64  # records of one task
AHEAD = 4  # tasks per process that are handed out before the first one's end is waited for
PROGRESS = ".progress"  # behind the name of the bad list

ENTRY_KEYS, PROGRESS_KEYS = ("row", "id", "problem", "detail"), ("mark", "bad")  # of a line of either file

Judged = tuple[Record, Problem | None]


@dataclass(frozen=True)
class Entry:
    """A line of the bad list."""

    row: int
    id: str
    problem: str
    detail: str


@dataclass(frozen=True)
class Verified:
    """What a verification found: how many records there are, and the bad ones in order."""

    records: int
    bad: list[Entry]

    @property
    def bad_fraction(self) -> float:
        """Share of the records."""
        return len(self.bad) / self.records if self.records else 0.0

    def counts(self) -> dict[str, int]:
        """Bad records by kind of problem."""
        return dict(sorted(Counter(entry.problem for entry in self.bad).items()))


def verify(
    source: Source,
    out: Path,
    *,
    limit: int | None = None,
    workers: int = 0,
    max_pixels: int = MAX_PIXELS,
    duplicate_ids: str = "refuse",
    progress: Callable[[int], None] | None = None,
) -> Verified:
    """Write the bad list of a data set to `out`, empty where all is well.

    Args:
        limit: the first records only.
        workers: processes that decode pictures; 0 decodes in this one.
        max_pixels: a picture of more pixels is oversized (a decompression bomb).
        duplicate_ids: as in `tga.data.loading.load_samples`: "number" finds no fault in ids that come again.
        progress: called with the number of records looked at so far.

    Raises:
        UserError: there is no such data set, or something else than an earlier bad list stands at `out`.
    """
    kept_in = out.with_name(out.name + PROGRESS)
    _refuse_other_file(out, "bad list", ENTRY_KEYS)
    _refuse_other_file(kept_in, "progress file", PROGRESS_KEYS)
    rows = iter(judged(source, limit, duplicate_ids))
    first = next(rows, None)  # what is wrong with the data set as a whole is said before anything is written
    kept_in.parent.mkdir(parents=True, exist_ok=True)
    known = _read_progress(kept_in)
    found: list[Entry] = []
    records = 0
    with kept_in.open("a", encoding="utf-8") as file, _executor(workers) as executor:
        started = _started(itertools.chain([] if first is None else [first], rows), known, executor, max_pixels)
        for task in _ahead(started, max(1, workers * AHEAD)):
            bad = task.bad()
            found.extend(bad)
            records += task.records
            if task.mark not in known:
                file.write(json.dumps({"mark": task.mark, "bad": [asdict(entry) for entry in bad]}) + "\n")
                file.flush()
            if progress is not None:
                progress(records)
    with atomic_path(out) as path:
        path.write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in found), encoding="utf-8")
    kept_in.unlink()
    return Verified(records, found)


def _refuse_other_file(path: Path, what: str, keys: tuple[str, ...]) -> None:
    """A file of rows with just these keys may be replaced, and an empty one; the data or anything else may not."""
    if not os.path.lexists(path):
        return
    with suppress(OSError, UnicodeDecodeError, json.JSONDecodeError), path.open(encoding="utf-8") as file:
        *lines, cut = file.read().split("\n")  # a killed process may have cut off the last line, or the only one
        rows = [json.loads(line) for line in lines]
        begun = f'{{"{keys[0]}": '
        known = not cut or cut.startswith(begun) or begun.startswith(cut)
        if known and all(isinstance(row, dict) and tuple(row) == keys for row in rows):
            return
    raise UserError(
        f"The {what} would replace something that is no {what}",
        given=path,
        allowed=f"a new file, an empty one, or an earlier {what}",
        remedy="out=ANOTHER_FILE.jsonl",
    )


def problem_of_picture(picture: Picture, max_pixels: int) -> Problem | None:
    """What decoding the whole picture finds. Its size is read from the header first, so that no bomb goes off."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's bound, ours is checked next; of odd metadata, which we ignore
            with opened(encoded(picture)) as image:
                if image.width * image.height > max_pixels:
                    return Problem(OVERSIZED, f"{picture}: {image.width} x {image.height} pixels")
                to_rgb(image)
    except FileNotFoundError as error:
        return Problem(MISSING, f"{picture}: {reason(error)}")
    except Image.DecompressionBombError as error:
        return Problem(OVERSIZED, f"{picture}: {error}")
    except Exception as error:  # a decoder may raise anything over broken bytes; whatever it is, the picture is bad
        cut = any(word in str(error) for word in ("truncated", "ends within"))
        return Problem(TRUNCATED if cut else UNREADABLE, f"{picture}: {reason(error) or type(error).__name__}")
    return None


@dataclass(frozen=True)
class _Task:
    """Some records in a row; `mark` is a fingerprint of them and of what they are looked at for."""

    mark: str
    records: int
    result: list[Entry] | Future[list[Entry]]

    def bad(self) -> list[Entry]:
        """Waits where the records are still being looked at."""
        return self.result.result() if isinstance(self.result, Future) else self.result


def _started(
    rows: Iterable[Judged], known: dict[str, list[Entry]], executor: Executor | None, max_pixels: int
) -> Iterator[_Task]:
    """The tasks in order; asking for one starts it, unless its result is known."""
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, CHUNK)):
        mark = _mark(chunk, max_pixels)
        if mark in known:
            yield _Task(mark, len(chunk), known[mark])
        elif executor is None:
            yield _Task(mark, len(chunk), _look(chunk, max_pixels))
        else:
            yield _Task(mark, len(chunk), executor.submit(_look, chunk, max_pixels))


def _ahead(tasks: Iterator[_Task], count: int) -> Iterator[_Task]:
    """The tasks in order, `count` of them started before the first one is handed over."""
    pending = list(itertools.islice(tasks, count))
    while pending:
        yield pending.pop(0)
        pending.extend(itertools.islice(tasks, 1))


def _look(chunk: Sequence[Judged], max_pixels: int) -> list[Entry]:
    """The bad records of a chunk, each with the first problem it has."""
    found = []
    for record, problem in chunk:
        problem = problem or empty_caption(record)
        pictures = iter(record.images)
        while problem is None and (picture := next(pictures, None)) is not None:
            problem = problem_of_picture(picture, max_pixels)
        if problem is not None:
            found.append(Entry(record.row, record.id, problem.kind, problem.detail))
    return found


def _mark(chunk: Sequence[Judged], max_pixels: int) -> str:
    digest = hashlib.sha256(str(max_pixels).encode())
    for record, problem in chunk:
        pictures = [identity(picture) for picture in record.images]
        what = [record.row, record.id, pictures, record.conversations, record.caption, problem and problem.kind]
        digest.update(json.dumps(what, default=str).encode())
    return digest.hexdigest()


def _read_progress(path: Path) -> dict[str, list[Entry]]:
    """Mark -> bad records, from a verification that was stopped; a last line that was cut is left out."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    if lines and not lines[-1].endswith("\n"):
        with atomic_path(path) as temporary:
            temporary.write_text("".join(lines[:-1]), encoding="utf-8")
    return {row["mark"]: [Entry(**entry) for entry in row["bad"]] for row in whole}


@contextmanager
def _executor(workers: int) -> Iterator[Executor | None]:
    if not workers:
        yield None
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as executor:
        try:
            yield executor
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
