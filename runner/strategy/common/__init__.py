"""What several strategies are built from: the step of a torch module, and its state by the model's own names."""
