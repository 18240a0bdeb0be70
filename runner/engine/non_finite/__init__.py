"""Numbers that are not finite: noticed, traced back to their source, and reported."""
