"""Making the FAISS file that a plan describes, from embeddings on disk, within the plan's memory.

An inverted file is learned from a uniform sample, filled in parts (each a file of its own, so that a killed build
goes on with the next one, and other machines can make some of them), and the parts are merged on disk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_index.faiss_env import import_faiss
from retrieval_index.faiss_files import merge_lists, write_flat, write_index, write_lists
from retrieval_index.ownership import remove_ours
from retrieval_index.planner import HNSW_LINKS, HNSW_QUANTISER_LISTS, Plan
from retrieval_index.vectors import Vectors, uniform_sample

SEED = 20_260_101
EF_CONSTRUCTION = 80
TRAINED = "trained.faiss"
PART = re.compile(r"part-\d{5,}\.faiss")
Report = Callable[[int], None]


@dataclass(frozen=True)
class PartWriter:
    """Makes part `number` of an inverted file, unless it is there; a plain value that travels to other processes.

    Args:
        paths: the .npy files of all embeddings.
        directory: where the trained index is and the parts go.
        start: first row of part 0.
        part_rows: rows per part.
        rows: end of the last part.
    """

    paths: tuple[Path, ...]
    directory: Path
    start: int
    part_rows: int
    rows: int

    @property
    def parts(self) -> int:
        """Number of parts."""
        return -(-(self.rows - self.start) // self.part_rows)

    def path(self, number: int) -> Path:
        """Where part `number` goes."""
        return self.directory / f"part-{number:05d}.faiss"

    def __call__(self, number: int) -> int:
        """Make the part; returns its rows."""
        first = self.start + number * self.part_rows
        last = min(first + self.part_rows, self.rows)
        if not self.path(number).exists():
            index = import_faiss().read_index(str(self.directory / TRAINED))
            lists, codes = encoded(index, Vectors(self.paths), first, last)
            write_lists(self.path(number), index, lists, codes, first)
        return last - first


def make_index(
    vectors: Vectors,
    plan: Plan,
    path: Path,
    *,
    run: Callable[[PartWriter, range, Report], None],
    report: Report,
) -> None:
    """Write the FAISS file of all `vectors` at `path`, unless it is there.

    Args:
        vectors: the embeddings; their order gives the ids.
        plan: what to build.
        path: of the FAISS file; work that is kept for another start stands beside it.
        run: calls a part writer for each number of a range, here or elsewhere, and reports rows done.
        report: is told how many rows are done.
    """
    if path.exists():
        return
    if plan.kind == "flat":
        write_flat(path, _reported(vectors, report), len(vectors), vectors.width)
    elif plan.kind == "hnsw":
        write_index(_linked(vectors, plan, report), path)
    else:
        trained = path.parent / TRAINED
        if not trained.exists():
            write_index(_learned(vectors, plan), trained)
        writer = PartWriter(tuple(file.path for file in vectors.files), path.parent, 0, plan.part_rows, len(vectors))
        run(writer, range(writer.parts), report)
        merge_lists(path, import_faiss().read_index(str(trained)), [writer.path(n) for n in range(writer.parts)])
    remove_parts(path.parent)


def grow_index(
    old: Path,
    vectors: Vectors,
    start: int,
    plan: Plan,
    path: Path,
    *,
    run: Callable[[PartWriter, range, Report], None],
    report: Report,
) -> None:
    """Write at `path` the FAISS file `old` with the rows from `start` added, unless it is there.

    Lists and codes are those that `old` learned; a flat index and a graph are written anew.
    """
    if path.exists():
        return
    if plan.kind in ("flat", "hnsw"):
        make_index(vectors, plan, path, run=run, report=report)
        return
    faiss = import_faiss()
    trained = path.parent / TRAINED
    if not trained.exists():
        write_index(emptied(faiss.read_index(str(old), faiss.IO_FLAG_MMAP_IFC)), trained)
    writer = PartWriter(tuple(file.path for file in vectors.files), path.parent, start, plan.part_rows, len(vectors))
    run(writer, range(writer.parts), report)
    parts = [writer.path(number) for number in range(writer.parts)]
    merge_lists(path, faiss.read_index(str(trained)), [old, *parts])
    remove_parts(path.parent)


def encoded(index: Any, vectors: Vectors, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """List `[rows]` int64 and code `[rows, code bytes]` uint8 of the rows from `first` to `last`.

    What `index.add` computes, without the lists that FAISS doubles whenever one is full.
    """
    swig_ptr = import_faiss().swig_ptr
    lists = np.empty(last - first, dtype=np.int64)
    codes = np.empty((last - first, index.code_size), dtype=np.uint8)
    for row, block in vectors.blocks(first, last):
        part = slice(row - first, row - first + len(block))
        lists[part] = index.quantizer.search(block, 1)[1][:, 0]
        index.encode_vectors(len(block), swig_ptr(block), swig_ptr(lists[part]), swig_ptr(codes[part]))
    return lists, codes


def emptied(index: Any) -> Any:
    """The same learned index without rows."""
    faiss = import_faiss()
    lists = faiss.ArrayInvertedLists(index.nlist, index.code_size)
    index.replace_invlists(lists, True)
    lists.this.disown()
    index.ntotal = 0
    return index


def remove_parts(directory: Path) -> None:
    """Remove what only a build needs."""
    remove_ours(directory, lambda name: name == TRAINED or PART.fullmatch(name) is not None)


def _learned(vectors: Vectors, plan: Plan) -> Any:
    """The empty inverted file with lists (and codes) learned from a uniform sample."""
    faiss = import_faiss()
    inner_product = faiss.METRIC_INNER_PRODUCT
    if plan.lists >= HNSW_QUANTISER_LISTS:
        quantiser = faiss.IndexHNSWFlat(plan.width, HNSW_LINKS, inner_product)
        quantiser.hnsw.efSearch = 2 * EF_CONSTRUCTION
    else:
        quantiser = faiss.IndexFlatIP(plan.width)
    if plan.kind == "ivf_flat":
        index = faiss.IndexIVFFlat(quantiser, plan.width, plan.lists, inner_product)
    elif plan.kind == "ivf_sq8":
        byte = faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexIVFScalarQuantizer(quantiser, plan.width, plan.lists, byte, inner_product)
    else:
        index = faiss.IndexIVFPQ(quantiser, plan.width, plan.lists, plan.code_bytes, 8, inner_product)
        index.pq.cp.min_points_per_centroid = 1  # FAISS would print a warning per byte of a code
    if plan.lists >= HNSW_QUANTISER_LISTS:
        # The centroids are found by comparing with all of them, and linked afterwards by one thread.
        index.quantizer_trains_alone = 2
        index.clustering_index = faiss.IndexFlatIP(plan.width)
    index.cp.min_points_per_centroid = 1  # the plan has seen to there being enough, where the corpus has
    sample = vectors.take(uniform_sample(len(vectors), plan.sample, SEED))
    with one_thread(plan.lists >= HNSW_QUANTISER_LISTS):
        index.train(sample)
    index.own_fields = True
    quantiser.this.disown()
    return index


def _linked(vectors: Vectors, plan: Plan, report: Report) -> Any:
    faiss = import_faiss()
    index = faiss.IndexHNSWFlat(plan.width, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = EF_CONSTRUCTION
    with one_thread(True):
        for row, block in vectors.blocks():
            index.add(block)
            report(row + len(block))
    return index


def _reported(vectors: Vectors, report: Report) -> Iterator[np.ndarray]:
    for row, block in vectors.blocks():
        yield block
        report(row + len(block))


@contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """Let FAISS use one thread within the block, where the result would depend on the order of threads."""
    faiss = import_faiss()
    before = faiss.omp_get_max_threads()
    if wanted:
        faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
