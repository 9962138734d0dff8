"""The live page: runs, their curves and transitions in a browser, as they come."""
