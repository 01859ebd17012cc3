"""The pages: each is one function, drawn anew at every click."""
