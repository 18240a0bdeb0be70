"""Where measurements go: one tracker per file, whose library is imported only when it is opened."""
