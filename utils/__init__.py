"""The measuring library, in rooms; each one's docstring says what lives there. `errors` and `files` serve them all."""
