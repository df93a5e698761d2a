"""Trainings on a Ray cluster: place the workers, give them the data, and bring back log, state and model."""
