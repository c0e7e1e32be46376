"""The measuring library, in rooms: each docstring says what lives there.

`errors`, `files`, `progress` and `protocol` serve all of them.
"""
