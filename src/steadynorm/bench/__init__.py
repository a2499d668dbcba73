"""Side-by-side measurements of normalization on this machine: ours, torch's, and other frameworks' where installed."""
