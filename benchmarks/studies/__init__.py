"""Studies made once. Their figures stand in docs/; the code is kept so that they can be repeated."""
