"""What is measured, against whom, and the results. Installed as `sdfast.benchmarks`."""
