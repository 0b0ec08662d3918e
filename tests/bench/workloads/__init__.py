"""What is asked in benchmarks: a module a workload. Each has `prepare(folder, quick)`, which writes its rows there and gives
its sides and claims."""
