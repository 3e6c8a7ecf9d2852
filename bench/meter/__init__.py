"""Estimated cost of every kernel on every supported chip, compared with a committed baseline."""
