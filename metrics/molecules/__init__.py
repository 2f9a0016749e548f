"""What is measured of sets of molecules, one family of metrics a file."""
