"""From a source to samples: what the bad list names is left out and counted, anything else that is wrong stops.

A bad list is JSON lines of {row, id, problem, detail}, as `tga-verify-data` writes it. It goes by the
row, since ids may be what is wrong, and a list of another data set is refused by the ids.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from tga.data.packed import PackedSamples
from tga.data.record import (
    DUPLICATE_ID,
    MALFORMED,
    MISSING,
    NO_ID,
    OUTSIDE,
    Problem,
    Record,
    Source,
    problem_of,
    to_sample,
)
from tga.data.sample import Sample
from tga.errors import UserError

NAMED = 5  # as many culprits as an error message names
DUPLICATES = ("refuse", "number")


@dataclass(frozen=True)
class Loaded:
    """Samples, and how many records the bad list left out, by kind of problem."""

    samples: PackedSamples
    skipped: dict[str, int]


def load_samples(
    source: Source,
    *,
    limit: int | None = None,
    bad_list: Path | None = None,
    max_bad_fraction: float = 0.01,
    duplicate_ids: str = "refuse",
) -> Loaded:
    """Read a data set, without neighbours.

    Args:
        limit: the first records only.
        bad_list: records to leave out.
        max_bad_fraction: more of them than this share of the records stop the run.
        duplicate_ids: "refuse", or "number": the second record of an id gets `#2` behind it, the third `#3`.

    Raises:
        UserError: a data set that is not there, records with a problem that the bad list does not name, too many
            that it names, or a list of another data set.
    """
    bad = read_bad_list(bad_list) if bad_list is not None else {}
    skipped: Counter[str] = Counter()
    found: list[tuple[Record, Problem]] = []
    read = [0]

    def good() -> Iterator[Sample]:
        for record, problem in judged(source, limit, duplicate_ids):
            read[0] += 1
            if record.row in bad:
                _check_same(record, bad[record.row], bad_list, source)
                skipped[bad[record.row][1]] += 1
            elif problem is not None:
                found.append((record, problem))
            else:
                yield to_sample(record)

    samples = PackedSamples(good())
    if found:
        raise _refused(source, found)
    if (count := sum(skipped.values())) > max_bad_fraction * read[0]:
        raise UserError(
            f"{count} of {read[0]} records of {source.name} are on the bad list {bad_list}",
            given=", ".join(f"{kind}: {number}" for kind, number in sorted(skipped.items())),
            allowed=f"a share of {max_bad_fraction:g}",
            remedy="complete the download and verify again, or data.max_bad_fraction=SHARE",
        )
    if not len(samples):
        raise UserError("The data set has no samples", given=source.name, remedy=source.remedy)
    return Loaded(samples, dict(skipped))


def judged(source: Source, limit: int | None, duplicate_ids: str) -> Iterator[tuple[Record, Problem | None]]:
    """The records with what is wrong with each, ids that come again being refused or numbered."""
    if duplicate_ids not in DUPLICATES:
        allowed = ", ".join(DUPLICATES)
        raise UserError(
            "Unknown treatment of ids that come again", given=duplicate_ids, allowed=allowed,
            remedy="data.duplicate_ids=number",
        )  # fmt: skip
    seen: Counter[str] = Counter()
    for record in source.records(limit):
        problem = problem_of(record)
        seen[record.id] += 1
        if (count := seen[record.id]) > 1 and record.id:
            if duplicate_ids == "number":
                record = dataclasses.replace(record, id=f"{record.id}#{count}")
            elif problem is None:
                problem = Problem(DUPLICATE_ID, record.id)
        yield record, problem


def read_bad_list(path: Path) -> dict[int, tuple[str, str]]:
    """Row -> (id, kind of problem).

    Raises:
        UserError: no such file, or not a bad list.
    """
    remedy = "tga-verify-data makes it; data.bad_list=null trains without"
    try:
        rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line]
        return {int(row["row"]): (str(row["id"]), str(row["problem"])) for row in rows}
    except FileNotFoundError as error:
        raise UserError("There is no bad list here", given=path, remedy=remedy) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"This is not a bad list ({error!r})", given=path, remedy=remedy) from error


def with_neighbours(samples: Sequence[Sample], path: Path, *, used: int = 1) -> PackedSamples:
    """The samples with the first `used` neighbours of each, from the columns `id` and `texts` of a neighbours.parquet.

    Raises:
        UserError: no such file, or samples with a picture that it does not know.
    """
    texts = _read_neighbours(path, used)
    unknown = [sample.id for sample in samples if sample.images and sample.id not in texts]
    if unknown:
        count = sum(bool(sample.images) for sample in samples)
        problem = f"{len(unknown)} of {count} samples with a picture are not in the neighbours file {path}"
        remedy = "join this data set to the index again: tga-build-index neighbours=DATA.json, or data.neighbours=null"
        raise UserError(problem, given=unknown[:NAMED], remedy=remedy)
    return PackedSamples(_joined(samples, texts))


def _joined(samples: Iterable[Sample], texts: Mapping[str, tuple[str, ...]]) -> Iterator[Sample]:
    return (dataclasses.replace(sample, neighbours=texts.get(sample.id, ())) for sample in samples)


def _read_neighbours(path: Path, used: int) -> dict[str, tuple[str, ...]]:
    """Texts by sample id, the first `used` of each."""
    try:
        table = pq.read_table(path, columns=["id", "texts"])
    except FileNotFoundError as error:
        remedy = "tga-build-index neighbours=DATA.json makes it; data.neighbours=null trains without"
        raise UserError("There is no neighbours file here", given=path, remedy=remedy) from error
    texts = table.column("texts").to_pylist()
    return {key: tuple(row[:used]) for key, row in zip(table.column("id").to_pylist(), texts, strict=True)}


def _check_same(record: Record, listed: tuple[str, str], bad_list: Path | None, source: Source) -> None:
    """The ids agree, up to the number that an id that comes again has got."""
    if listed[0].partition("#")[0] != record.id.partition("#")[0]:
        raise UserError(
            f"The bad list {bad_list} belongs to another data set than {source.name}",
            given=f"row {record.row} is {listed[0]!r} in the list and {record.id!r} in the data",
            remedy="tga-verify-data makes a new one; data.bad_list=PATH",
        )


def _refused(source: Source, found: Sequence[tuple[Record, Problem]]) -> UserError:
    """One error over all problems, worded after the most frequent kind."""
    kind, count = Counter(problem.kind for _, problem in found).most_common(1)[0]
    of_kind = [(record, problem) for record, problem in found if problem.kind == kind][:NAMED]
    details = list(dict.fromkeys(problem.detail for _, problem in of_kind))
    said = {
        MISSING: (f"{count} pictures are missing from {source.name}", details),
        OUTSIDE: (f"{count} pictures of {source.name} lie outside of the image root", details),
        NO_ID: (f"{count} records of {source.name} have no id", details),
        DUPLICATE_ID: (f"{count} records of {source.name} have the id of another: more than one record each", details),
        MALFORMED: (
            f"A record of {source.name} {of_kind[0][1].detail}" if count == 1 else f"{count} records are malformed",
            [f"id {record.id}: {problem.detail}" for record, problem in of_kind],
        ),
    }
    problem, given = said[kind]
    rest = len(found) - count
    remedy = f"{source.remedy}, or leave such records out: tga-verify-data lists them for data.bad_list=PATH"
    if kind == DUPLICATE_ID:
        remedy = "data.duplicate_ids=number, or make the ids unique: neighbours and errors go by them"
    return UserError(problem + (f", and {rest} others have other flaws" if rest else ""), given=given, remedy=remedy)
