"""The pages. Each is one function, which is called again at every click."""
