"""What the library costs beside other ways to compute the same: `python -m bench`, `python -m bench.gpu`."""
