"""Distributed transfer learning on Ray for chest-CT images.

A research tool, not a medical device.
"""

__version__ = "0.1.0"
