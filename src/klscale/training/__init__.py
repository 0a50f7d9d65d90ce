"""Inside a training loop: callbacks that follow the model."""
