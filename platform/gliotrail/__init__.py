"""Gliotrail: distributed experiment tracking for brain-tumour segmentation in 3-D MRI."""

__version__ = "0.1.0"
