"""Models and data sets from hubs, verified file by file."""
