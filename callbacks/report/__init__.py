"""The page `report.html` of a run or a study: numbers, figures, samples and settings."""
