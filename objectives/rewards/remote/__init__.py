"""Rewards that ask a server: a reward server of your own, or a language model as a judge."""
