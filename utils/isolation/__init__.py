"""Untrusted code and the figures it gets: the host, who holds data, clock and record, the sandbox, and the audit.

`host` runs a model in a worker process, `audit` looks for what its figures hide.
It uses `data`, `zoo`, `measure`, `worker` and `evaluate`.
"""
