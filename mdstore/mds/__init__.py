"""The metadata server: a POSIX name space kept as directory maps in an object store, journaled, replayed, written back."""
