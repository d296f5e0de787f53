"""What people look at: overlays, curves, viewer."""
