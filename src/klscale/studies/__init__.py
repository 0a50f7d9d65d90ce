"""What is asked of vectors: the scale, runs, layers, maps, and whether a number can be trusted."""
