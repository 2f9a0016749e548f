"""Policies that write molecules."""
