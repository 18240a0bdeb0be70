"""JSON Schemas of recipes and option files, for editors: made of the dataclasses that read the values."""
