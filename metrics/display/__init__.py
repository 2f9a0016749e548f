"""How numbers are shown to people: names and units of log keys, and the style of figures."""
