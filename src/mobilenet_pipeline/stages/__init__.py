"""One module per DVC stage. Its `main` takes a recipe, and a candidate's name if the stage is of a candidate."""
