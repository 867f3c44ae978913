"""Speed and memory of sherl against other implementations of the same network, as ratios taken in one run."""
