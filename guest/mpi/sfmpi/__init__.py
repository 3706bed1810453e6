"""sfmpirun: an MPI program over clones (docs/mpi.md)."""
