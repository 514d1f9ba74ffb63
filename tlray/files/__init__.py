"""File access: local paths, object stores and zip archives, allowed roots, file stamps, and atomic writing."""
