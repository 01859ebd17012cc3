"""The stages of a run: one function each, from a config section and input folders to an output folder and its manifest."""
