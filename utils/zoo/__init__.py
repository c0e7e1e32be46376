"""Building a model: the registry's tables or a model file, the class, the weights.

It uses no other subpackage.
"""
