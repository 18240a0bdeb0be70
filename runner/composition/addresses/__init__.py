"""Kinds of addresses that a recipe can be named by, one file each, found by listing this folder.

The file's name is the scheme: `git.py` finds what begins with git+…://, `pkg.py` what begins with pkg://.
"""
