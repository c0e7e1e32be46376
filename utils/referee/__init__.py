"""Strangers' code and the figures it gets: the judge, who holds data, clock and record, the sandbox, and the audit.

`judge` runs a model in a contestant's process, `audit` looks for what its figures hide, `rows` makes one row of it.
It uses `data`, `zoo`, `measure`, `contestant`, `evaluate` and `results`.
"""
