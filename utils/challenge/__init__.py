"""The challenge: its rules and score, its score tables, and the files that the organizers' program writes.

It uses `data`, `evaluate` and `results`.
"""
