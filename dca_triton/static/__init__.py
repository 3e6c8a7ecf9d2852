"""What a kernel will cost on a GPU, told without one: compiled ahead of time, disassembled, counted and
modelled."""
