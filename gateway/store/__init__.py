"""What was taken, on disk: the spool, the batch codec, pictures."""
