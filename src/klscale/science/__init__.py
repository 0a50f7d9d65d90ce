"""The arithmetic: arrays in, frozen results out. NumPy and SciPy alone."""
