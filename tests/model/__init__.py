"""Model tests: random operations on the real thing and on a simple one, results and error kinds compared."""
