"""Whether every file of an index is the one that its manifest names, by reading all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from retrieval_index.errors import RetrievalError
from retrieval_index.files import file_sha256
from retrieval_index.manifest import REBUILD, read_manifest
from retrieval_index.store import duplicates_path, embeddings_path, rows_path

NAMED = 5


def verify_index(directory: Path, report: Callable[[int, int], None] | None = None) -> int:
    """Compare the SHA-256 of every file with the manifest; returns the number of files.

    Args:
        directory: of the index.
        report: is told files done and files in all.

    Raises:
        RetrievalError: files that are missing or changed, all in one message.
    """
    manifest = read_manifest(directory)
    expected = {directory / manifest.index.file: manifest.index.sha256}
    for number, shard in enumerate(manifest.shards):
        expected[embeddings_path(directory, number)] = shard.embeddings_sha256
        expected[rows_path(directory, number)] = shard.captions_sha256
    for number, sha256 in enumerate(manifest.duplicates_sha256):
        expected[duplicates_path(directory, number)] = sha256
    damaged = []
    for done, (path, sha256) in enumerate(expected.items()):
        if report is not None:
            report(done, len(expected))
        if not path.is_file():
            damaged.append(f"{path} is missing")
        elif file_sha256(path) != sha256:
            damaged.append(f"{path} has changed")
    if report is not None:
        report(len(expected), len(expected))
    if damaged:
        more = f" and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
        raise RetrievalError(
            f"{len(damaged)} of {len(expected)} files are not what the manifest says",
            given="; ".join(damaged[:NAMED]) + more,
            remedy=REBUILD,
        )
    return len(expected)
