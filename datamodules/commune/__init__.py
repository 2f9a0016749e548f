"""Data for agents: tasks, questions, cached states."""
