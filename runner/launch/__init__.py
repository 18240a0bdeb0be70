"""How the ranks of a run are started, stopped and accounted for."""
