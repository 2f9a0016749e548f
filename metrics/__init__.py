"""What is measured: torchmetrics with the pure functions that they accumulate."""
