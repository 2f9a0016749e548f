"""What the repository brings along for runs without any data: tables of facts and their prose."""
