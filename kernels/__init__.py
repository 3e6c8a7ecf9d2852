"""Raw Triton kernels, one file per op. Nothing here knows modules, models or the command line."""
