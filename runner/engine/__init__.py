"""The loop of steps and what happens around it. Options are seen through protocols alone."""
