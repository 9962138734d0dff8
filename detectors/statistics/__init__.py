"""What detectors reckon with: windows, noise, scales, trends, residuals."""
