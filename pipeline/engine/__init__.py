"""Engines behind one seam: vLLM, and an echo without a model."""
