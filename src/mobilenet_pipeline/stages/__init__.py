"""One module a DVC stage, each with a `main` that takes a recipe, and a candidate's name where it is of one."""
