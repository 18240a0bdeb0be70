"""The ranks of a run: who they are, how they agree, what they draw at random."""
