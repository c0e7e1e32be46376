"""The measuring library. The docstring of each subpackage says what it contains.

All subpackages share `errors`, `files`, `typed`, `progress`, `protocol` and `record`. Other modules build on the
subpackages: `options` (shared command-line options), `request` (a command line's request as types), `resumable` (one
model measured into a results file) and `measuring` (everything that `eval.py` does).
"""
