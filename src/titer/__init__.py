"""titer: up to which training budget does a language model's safety withstand harmful fine-tuning?"""

__version__ = "0.1.0"
