"""The machine layer: VMs on one machine memory, and how they run."""
