"""Strangers' code: running it where it cannot harm other rows, and seeing what it does.

It uses `zoo`, `evaluate` and `results`.
"""
