"""A small project that trains at once, written from templates. For `runner init`."""
