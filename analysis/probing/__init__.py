"""Probing methods as scikit-learn estimators."""
