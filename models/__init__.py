"""One file per network; a submitted model file imports nothing but torch."""
