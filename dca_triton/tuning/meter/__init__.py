"""Estimate a kernel's GPU cost without a GPU.

Compile a launch ahead of time, disassemble it, count its instructions, and apply a cost model.
"""
