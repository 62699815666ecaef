"""The engine layer: what stands on Unicorn and numba, and knows nothing of paging."""
