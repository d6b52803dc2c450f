"""equipoise: multi-level safety alignment of language models, helpfulness and harmlessness in balance."""

__version__ = "0.1.0"
