"""How a model comes to be: the registry's tables or a file of no registry, the class, the weights.

It uses no other room.
"""
