"""Tune the kernels for a GPU, and estimate their cost without one."""
