"""Worker process: takes jobs off the queue, one at a time, and runs them."""
