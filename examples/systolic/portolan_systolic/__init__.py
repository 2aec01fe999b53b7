"""A simulated accelerator for Portolan: the path that a vendor of an NPU takes, end to end and without hardware."""
