"""The command line: one file in verbs/ for each verb."""
