"""The measuring library, in rooms: each docstring says what lives there. `errors`, `files`, `protocol` serve all."""
