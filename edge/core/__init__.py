"""Rules without I/O: numbers in, decisions out, time as an argument."""
