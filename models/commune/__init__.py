"""Agents, the thought codec and the prefix adapter."""
