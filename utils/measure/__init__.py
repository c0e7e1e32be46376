"""A model by itself: runtime, memory, FLOPs and activations, and the machine that they were measured on.

It uses `zoo`.
"""
