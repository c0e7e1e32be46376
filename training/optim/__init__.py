"""Losses, the Muon optimizer, and averages over steps and processes."""
