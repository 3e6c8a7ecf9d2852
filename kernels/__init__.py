"""Raw Triton kernels, one file per op, independent of modules, models and the command line."""
