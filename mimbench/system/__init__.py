"""Files, locks, logs, seeds, configuration, processes: what everything else stands on."""
