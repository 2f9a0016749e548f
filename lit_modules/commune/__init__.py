"""Training of agents, codecs and adapters."""
