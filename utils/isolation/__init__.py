"""Measuring untrusted code: the host, which holds data, clock and record; the sandbox; and the audit.

`host` runs a model in a worker process. `audit` checks whether its figures hide anything.
It uses `data`, `zoo`, `measure`, `worker` and `evaluate`.
"""
