"""Follow runs in Weights & Biases, MLflow or Trackio: one process beside the run reads its files."""
