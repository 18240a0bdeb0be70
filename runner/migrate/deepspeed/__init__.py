"""DeepSpeed's configuration in JSON, read as arguments with dotted names: a table per topic."""
