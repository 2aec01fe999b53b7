"""Measuring: timing races, statistics, fidelity and accuracy, memory."""
