"""How the bytes of a volume are held: as an image behind a loop device, or as a directory with a quota."""
