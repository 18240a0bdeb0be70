"""Where measurements go: one tracker a file, its library imported inside it."""
