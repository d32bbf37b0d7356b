"""What stands in front of a name space: the FUSE mount and the client library."""
