"""Measuring saved checkpoints, after or beside the training that wrote them."""
