"""What one unit of each step of a build costs here: the figures that the planner and docs/scale.md reckon with."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from retrieval_index.captions import caption_key, normalise
from retrieval_index.corpus import read_file, write_rows
from retrieval_index.faiss_env import import_faiss
from retrieval_index.readers import Keys
from tools.index_bench.synthetic import captions, unit, write_corpus

WIDTH, ROWS, CAPTIONS = 256, 40_000, 50_000


def spent(function: Callable[[], object]) -> float:
    """CPU seconds of one call: on a machine that others use, wall time would measure them too."""
    started = time.process_time()
    function()
    return time.process_time() - started


def measure_costs(directory: Path) -> dict[str, float]:
    """Per-unit costs in CPU seconds of one thread (run with OMP_NUM_THREADS=1)."""
    faiss = import_faiss()
    faiss.omp_set_num_threads(1)
    texts = captions(CAPTIONS)
    (directory / "c.txt").write_text("\n".join(texts), encoding="utf-8")
    reading = spent(lambda: read_file(directory / "c.txt", directory / "work", 0, Keys(), 2000))
    rows = spent(
        lambda: write_rows(directory / "work", 1, (), first_shard=0, generation=0, shard_rows=10**5, memory=2**30)
    )
    keys = spent(lambda: [caption_key(normalise(text)) for text in texts])
    write_corpus(directory / "v", ROWS, WIDTH, 10)
    vectors = np.load(directory / "v" / "00000.npy")
    return {
        "read_us_per_record": reading / CAPTIONS * 1e6,
        "distinct_us_per_record": rows / CAPTIONS * 1e6,
        "key_us_per_record": keys / CAPTIONS * 1e6,
        "matrix_gflop_per_s": _matrix_products() / 1e9,
        "faiss_knn_gflop_per_s": _knn(vectors) / 1e9,
        **_codes(vectors),
        "hnsw_us_per_row_and_width": _hnsw(vectors) * 1e6,
    }


def _matrix_products() -> float:
    a, b = np.ones((2048, WIDTH), np.float32), np.ones((WIDTH, 8192), np.float32)
    a @ b
    return 5 * 2 * 2048 * 8192 * WIDTH / spent(lambda: [a @ b for _ in range(5)])


def _knn(vectors: np.ndarray) -> float:
    faiss, queries = import_faiss(), unit(np.random.default_rng(0).standard_normal((500, WIDTH)).astype(np.float32))
    seconds = spent(lambda: faiss.knn(queries, vectors, 10, metric=faiss.METRIC_INNER_PRODUCT))
    return 2 * len(queries) * len(vectors) * WIDTH / seconds


def _codes(vectors: np.ndarray) -> dict[str, float]:
    faiss, figures = import_faiss(), {}
    quantiser = faiss.ProductQuantizer(WIDTH, WIDTH // 4, 8)
    learning = spent(lambda: quantiser.train(vectors[:16_384]))
    figures["pq_learn_gflop_per_s"] = 2 * 256 * WIDTH * 16_384 * quantiser.cp.niter / learning / 1e9
    encoding = spent(lambda: quantiser.compute_codes(vectors[:10_000]))
    figures["pq_encode_gflop_per_s"] = 2 * 256 * WIDTH * 10_000 / encoding / 1e9
    return figures


def _hnsw(vectors: np.ndarray) -> float:
    """Seconds per row and number of width among a million, as `planner.hnsw_seconds` reckons."""
    faiss = import_faiss()
    index = faiss.IndexHNSWFlat(WIDTH, 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 80
    rows = 10_000
    return spent(lambda: index.add(vectors[:rows])) / (rows * WIDTH * np.log2(rows) / 20)
