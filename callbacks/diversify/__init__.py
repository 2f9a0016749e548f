"""What happens around policy optimisation: figures, and a stop on collapse."""
