"""What serves the reader: exercise checkers, the catalogue of known mistakes, figures, and stored results."""

from ppo_edu.teach.results import load_result
from ppo_edu.teach.source import show_source

__all__ = ["load_result", "show_source"]
