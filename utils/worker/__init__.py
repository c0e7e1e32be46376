"""What runs in a worker's process: an untrusted network, answering the host, and nothing that is the host's.

No images, metrics, clock or results that count are here; what this process says of itself is checked by the host.
It uses `zoo` and `measure`.
"""
