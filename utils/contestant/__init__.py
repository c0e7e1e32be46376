"""What runs in a contestant's process: a stranger's network, answering the judge, and nothing that is the judge's.

No images, metrics, clock or results that count are here; what this process says of itself is checked by the judge.
It uses `zoo` and `measure`.
"""
