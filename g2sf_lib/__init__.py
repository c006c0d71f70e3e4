"""G2SF: geometry-guided score fusion for multimodal industrial anomaly detection."""
