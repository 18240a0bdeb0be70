"""Files of predictions: written in parts as they come, one format per file, and then joined."""
