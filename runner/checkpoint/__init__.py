"""The options of the group `checkpoint`: how and how often a run is saved, and which checkpoints are kept."""
