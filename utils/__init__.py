"""The measuring library: no printing, no argument parsing; one job per module."""
