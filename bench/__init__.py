"""Benchmarks of the library and of other implementations: `python -m bench`, `python -m bench.gpu`."""
