"""The languages that kernels are printed in, one file each; `c` has the CPU to itself and is in `compiler`."""
