"""How an index is built: the config group `index`, as values that are checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass

from retrieval_index.checks import check_count, is_number
from retrieval_index.errors import RetrievalError
from retrieval_index.planner import KINDS
from retrieval_index.readers import Keys
from retrieval_index.units import parse_bytes

DTYPES = ("float32", "float16")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class IndexSettings:
    """Settings of a build.

    Args:
        shard_rows: captions per shard.
        batch_size: captions per batch of the encoder.
        dtype: float32 or float16, of the embeddings on disk.
        caption_key, id_key: key or column of captions and ids; None: `caption` or `text`, `id` or `key`. Numbers are
            columns, from 1, of a table without a line of names.
        max_characters: longer captions are left out, and counted.
        kind: of index, "auto" lets the planner choose.
        memory_budget: what building and serving the index may keep resident, as `16GiB`.
        target_recall: recall@`recall_k` wanted.
        accept_recall: the least that is kept instead of failing; None: the target.
        recall_k: neighbours compared.
        recall_queries: queries to measure with, at most.
        search_device: where the index will be asked: "cpu", "cuda", or "auto": GPUs where FAISS has some.
    """

    shard_rows: int = 100_000
    batch_size: int = 256
    dtype: str = "float32"
    caption_key: str | int | None = None
    id_key: str | int | None = None
    max_characters: int = 2000
    kind: str = "auto"
    memory_budget: str | int = "16GiB"
    target_recall: float = 0.95
    accept_recall: float | None = None
    recall_k: int = 10
    recall_queries: int = 1000
    search_device: str = "auto"

    @property
    def keys(self) -> Keys:
        """Where records keep caption and id."""
        return Keys(self.caption_key, self.id_key)

    @property
    def budget(self) -> int:
        """The memory budget in bytes."""
        return parse_bytes(self.memory_budget)

    def check(self) -> None:
        """Raise RetrievalError for settings that cannot be."""
        for name in ("shard_rows", "batch_size", "max_characters", "recall_k", "recall_queries"):
            check_count(getattr(self, name), name, f"index.{name}={getattr(IndexSettings, name)}")
        for name in ("caption_key", "id_key"):
            key = getattr(self, name)
            named = isinstance(key, str) or (isinstance(key, int) and not isinstance(key, bool) and key > 0)
            if key is not None and not named:
                problem = f"{name} is the name of a key, or the number of a column of a table without a line of names"
                raise RetrievalError(problem, given=key, allowed="a name, or a number from 1", remedy=f"index.{name}=2")
        if self.dtype not in DTYPES:
            raise RetrievalError(
                "Unknown dtype", given=self.dtype, allowed=", ".join(DTYPES), remedy="index.dtype=float32"
            )
        if self.kind not in ("auto", *KINDS):
            allowed = ", ".join(("auto", *KINDS))
            raise RetrievalError("Unknown kind of index", given=self.kind, allowed=allowed, remedy="index.kind=auto")
        if self.search_device not in DEVICES:
            raise RetrievalError(
                "Unknown place to search",
                given=self.search_device,
                allowed=", ".join(DEVICES),
                remedy="index.search_device=auto",
            )
        for name, value in (("target_recall", self.target_recall), ("accept_recall", self.accept_recall)):
            if value is not None and not (is_number(value) and 0 <= value <= 1):
                raise RetrievalError(f"{name} is a share", given=value, allowed="0 to 1", remedy=f"index.{name}=0.95")
        _ = self.budget
