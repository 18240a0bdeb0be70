"""Configuration files of Accelerate and the arguments of `accelerate launch`, which are the same: a table per topic."""
