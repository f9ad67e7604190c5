"""The control plane: HTTP in front, rows behind, and a worker that starts runs and folds what they say."""
