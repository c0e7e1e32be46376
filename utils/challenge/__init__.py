"""The challenge: its rules and score, its score tables, the files that the organizers' own program leaves.

It uses `data` and `evaluate`.
"""
