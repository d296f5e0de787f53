"""What people look at: pictures, curves, charts, viewer."""
