"""The declaration of a run: typed, checked whole, frozen to a file."""
