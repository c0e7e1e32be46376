"""A team's last steps, `python -m utils.submission`: the rules and steps as a checklist, the archive, the branch in
the organizers' repository, the zip for the evaluation server, the factsheet.

It uses `data`, `zoo`, `measure`, `evaluate`, `results`, `challenge` and `isolation`.
"""
