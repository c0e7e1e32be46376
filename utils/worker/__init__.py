"""The code of a worker's process, which runs an untrusted network and answers the host.

Images, metrics, clock and results that count stay with the host, which checks what this process says about itself.
It uses `zoo` and `measure`.
"""
