"""Real runs that compare what this machine computes in several ways. For `runner selftest`."""
