"""hostvol: a CSI driver that turns directories on a node into PersistentVolumes."""

__version__ = "0.1.0"
