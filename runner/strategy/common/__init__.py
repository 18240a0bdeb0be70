"""Code that several strategies share: the step of a torch module, and its state by the model's parameter names."""
