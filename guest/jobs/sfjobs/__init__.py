"""Programs of a VM that have clones for as long as they run: what sfmpirun and sfdistcc are made of."""
