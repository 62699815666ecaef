"""Many VMs on one machine memory, which take turns in virtual time."""
