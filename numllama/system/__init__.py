"""The operating system: signals, standard streams, processes, BLAS threads and memory settings."""
