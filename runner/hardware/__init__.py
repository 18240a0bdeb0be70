"""The group `hardware`: the devices of one machine. One option per file."""
