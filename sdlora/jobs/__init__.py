"""Queue of jobs and their run folders, and the processes that work on them."""
