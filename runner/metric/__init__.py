"""What evaluations measure besides the loss, one metric a file."""
