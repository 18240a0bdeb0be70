"""A run from its declaration to its record: begun, continued and read back. Commands and Python functions share it."""
