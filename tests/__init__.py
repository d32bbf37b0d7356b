"""The tests of mdstore."""
