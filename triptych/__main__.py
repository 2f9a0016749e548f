"""`python -m triptych fit --config ...`, the same as the command `triptych`."""

from triptych.start import run

if __name__ == "__main__":
    run()
