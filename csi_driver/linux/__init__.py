"""The kernel's interfaces, one per module: they know syscalls and OSError, and nothing of volumes or CSI."""
