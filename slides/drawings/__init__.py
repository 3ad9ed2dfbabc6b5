"""The figures of the slides: a module for each deck, a function without arguments for each figure."""
