"""Many models into one store: what is missing is scored, what was interrupted goes on."""
