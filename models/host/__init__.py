"""Files and processes of the machine: written as a whole, checked when read, ended in time."""
