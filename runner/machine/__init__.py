"""What this machine has: versions, devices, links, limits, and the options that can run on it. For `runner env`."""
