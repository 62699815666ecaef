"""Looking at a VM without changing it: console, screen, page walk, crash report, event log, summary."""
