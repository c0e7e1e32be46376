"""The measuring library, in rooms: each docstring says what lives there.

`errors`, `files`, `typed`, `progress`, `protocol` and `record` serve all of them. Above the rooms: `options` (what
command lines share), `request` (what one asks for), `resumable` (one model measured into a results file), `measuring`
(all that `eval.py` does).
"""
