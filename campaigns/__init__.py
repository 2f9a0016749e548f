"""Campaigns of faults: kills, damaged files and hostile artefacts, seeded and resumable.

``python -m campaigns.kill_resume --cases 60 --seed 7`` prints a table of tried, clean and faulty
cases, and writes ``results.json`` with the first reproduction of each fault.
"""
