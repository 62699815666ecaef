"""The processor layer: delivery of events, segments, task switches, MSRs, clock, stepping, run loop."""
