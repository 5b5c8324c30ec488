"""STEPS: an ensemble of extrapolations, perturbed scale by scale."""
