"""Parts of `tools.bench_index`."""
