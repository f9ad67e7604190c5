"""Where a run's process runs. Every launcher runs the same command; only the place differs."""
