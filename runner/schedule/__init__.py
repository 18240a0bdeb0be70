"""The group `schedule`: the learning rate over the optimizer steps of a run. One option per file."""
