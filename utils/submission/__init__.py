"""A team's last steps, `python -m utils.submission`: the rules as a checklist, the archive, the factsheet's text.

It uses `data`, `zoo`, `measure`, `evaluate`, `results`, `challenge` and `isolation`.
"""
