"""`python -m dca_triton.cli` is `dca-triton`."""

from .main import main

main()
