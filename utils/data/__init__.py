"""Images and data folders: how an image is read, shrunk and converted, which ones are pairs, the built-in sample.

It uses no other room.
"""
