"""What stands in front of a name space: the FUSE mount."""
