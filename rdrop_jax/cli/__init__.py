"""One module for each program, and the command line that they share."""
