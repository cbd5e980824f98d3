"""Flow matching as pure functions of tensors."""
