"""Training: one trainer, and one module for each kind of model that it trains."""
