"""Readers of what holds images: single files, archives on other machines, folders and archives of one's own.

The network is touched in this package alone.
"""
