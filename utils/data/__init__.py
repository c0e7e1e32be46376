"""Images and data folders: reading, downscaling and converting images, finding pairs, and the built-in sample.

It uses no other subpackage.
"""
