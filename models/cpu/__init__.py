"""NanoSR in C for CPUs: variants of `models/team07_NanoSR.py` that are compiled when they are built."""
