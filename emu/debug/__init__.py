"""Looking into a running guest: the stepper, and what its front ends show."""
