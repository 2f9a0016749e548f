"""Rewards of molecules: components, transforms, their mean, an oracle with a ledger."""
