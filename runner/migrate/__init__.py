"""Configurations of other libraries, read as data and told as overrides. See runner/migrate/read.py."""
