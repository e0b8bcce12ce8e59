"""Benchmarks: each `bench_*.py` has `bench() -> Iterable[Row]`. `make bench` runs them and prints one table."""

from tests.bench.rows import Row

__all__ = ["Row"]
