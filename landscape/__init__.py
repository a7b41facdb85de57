"""What happened during training, and why does the network end where it does?"""

__version__ = "0.1.0"
